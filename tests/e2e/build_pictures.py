"""Makes the three pictures in the README and those of help pages, after `python dev.py demo`:

    python tests/e2e/build_pictures.py demo/contact_sheet.png
    python tests/e2e/build_pictures.py demo/contact_sheet.png --only help

docs/graph.jpg is the template for diffusion models after a run with the demo's model and pictures, in the real front end
(Nodes 2.0). docs/first_lora.jpg is the template for SDXL before its run: LoRA Dataset has been run alone, on pictures
that are made here, and the checkpoint is an empty file of that name; the numbers are the steps of the README. In both
the nodes stand closer than in the templates and some are folded, so that text can be read at the width of a README.
docs/results.jpg is the demo's sheet in two columns.

web/docs/<node>/node.jpg is a node after a run, as wide as the help panel. A page names it from web/docs/ on, as the
panel finds it: `![...](<node>/node.jpg)`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from demo import shapes, sheet, templates  # noqa: E402
from harness.browser import BARE_CANVAS, VIEWPORT, FrontEnd, open_browser  # noqa: E402
from harness.server import ComfyServer  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402

from e2e.build_workflows import build, wait_idle  # noqa: E402
from e2e.template_graphs import GRAPHS  # noqa: E402
from e2e.template_nodes import Node  # noqa: E402

WIDTH = 1660  # pixels, twice the width of a README's column
MARGIN = 24
EMPTY_SAFETENSORS = b"\2\0\0\0\0\0\0\0{}"
NODE, GAP, TITLE = 300, 44, 30  # widths of a node and of what is between columns, height of a title

Columns = tuple[tuple[str, ...], ...]
TRAINED: Columns = (
    ("UNETLoader", "CLIPLoader", "VAELoader", "LoraLoom_Previews", "LoraLoom_Validation", "LoraLoom_Dataset"),
    ("LoraLoom_TrainLora",),
    ("LoraLoom_SaveLora", "PreviewImage"),
)
FIRST: Columns = (
    ("CheckpointLoaderSimple", "LoraLoom_Previews", "LoraLoom_Validation", "LoraLoom_Dataset"),
    ("LoraLoom_TrainLora",),
    ("LoraLoom_SaveLora", "PreviewImage"),
)
FOLDED = ("UNETLoader", "CLIPLoader", "VAELoader", "LoraLoom_Previews", "LoraLoom_Validation")
IN_TITLE = -TITLE // 2
STEPS = {  # of the README: the node, and how far below its title's lower edge
    2: ("CheckpointLoaderSimple", IN_TITLE), 3: ("LoraLoom_Dataset", IN_TITLE), 4: ("LoraLoom_Dataset", 290),
    5: ("LoraLoom_TrainLora", IN_TITLE), 6: ("LoraLoom_SaveLora", IN_TITLE),
}  # fmt: skip

FOLD = """(types) => {
  for (const node of app.graph.nodes) if (types.includes(node.type) && !node.flags.collapsed) node.collapse()
}"""
NARROW = """([width, heights]) => {
  for (const node of app.graph.nodes) node.setSize([width, heights[node.type] ?? 60])
}"""
PLACE = """([columns, width, gap, title]) => {
  columns.forEach((types, column) => {
    let y = 0
    for (const type of types) {
      const node = app.graph.nodes.find(each => each.type === type)
      node.pos = [column * (width + gap), y]
      y += (node.flags.collapsed ? 0 : node.size[1]) + title + 14
    }
  })
}"""
HELP_WIDTH, HELP_MARGIN = 340, 7  # CSS pixels, about the panel's
HELP_SCALE = 1.5  # pixels of the picture to one of these
HELP = {  # the template that a node is taken from, and the height that it gets
    "LoraLoom_Dataset": (templates.TRAIN, 620), "LoraLoom_TrainLora": (templates.TRAIN, 900),
    "LoraLoom_SaveLora": (templates.TRAIN, 380), "LoraLoom_LoadLoraStack": (templates.STACK, 300),
    "LoraLoom_MergeLora": (templates.MERGE, 390), "LoraLoom_Interference": (templates.JUDGE, 600),
}  # fmt: skip
FRAME = """([type, height, width, margin]) => {
  const node = app.graph.nodes.find(each => each.type === type)
  node.setSize([340, height])
  app.graph.nodes.forEach((each, at) => { if (each !== node) each.pos = [20000 + 2000 * at, 0] })
  node.pos = [0, 0]
  const view = app.canvas.ds
  view.scale = (width - 2 * margin) / 340
  view.offset[0] = margin / view.scale
  view.offset[1] = margin / view.scale + 30
  app.canvas.deselectAll()
  app.canvas.setDirty(true, true)
  return node.id
}"""
ONLY = "(type) => { for (const node of app.graph.nodes) node.mode = !type || node.type === type ? 0 : 2 }"
CORNERS = "() => Object.fromEntries(app.graph.nodes.map(node => [node.type, [...node.pos]]))"


def shown(nodes: dict[str, Node], columns: Columns) -> dict[str, Node]:
    """Those of a template's nodes that are in the columns."""
    return {key: node for key, node in nodes.items() if any(node.type in column for column in columns)}


def arrange(page: FrontEnd, columns: Columns, heights: dict[str, int]) -> None:
    """Puts the nodes close together in columns, each as high as it must be or as `heights` says."""
    page.page.evaluate(FOLD, FOLDED)
    page.page.evaluate(NARROW, [NODE, heights])
    page.still()
    page.page.evaluate(PLACE, [columns, NODE, GAP, TITLE])
    page.still()


def trained(page: FrontEnd, steps: int | None) -> None:
    nodes = shown(templates.on_the_demo(GRAPHS[templates.TRAIN]()), TRAINED)
    if steps:
        nodes["train"].widgets["steps"] = steps
    build(page, nodes)
    page.run()
    wait_idle(page)


def first_lora(page: FrontEnd) -> None:
    build(page, shown(GRAPHS[templates.TRAIN_CHECKPOINT](), FIRST))
    page.page.evaluate(ONLY, "LoraLoom_Dataset")
    page.run()
    wait_idle(page)
    page.page.evaluate(ONLY, "")


def of_help(page: FrontEnd, kind: str, height: int) -> Image.Image:
    """A node alone, as wide as the help panel."""
    page.page.set_viewport_size({"width": VIEWPORT["width"], "height": 2 * height})
    node = page.page.evaluate(FRAME, [kind, height, HELP_WIDTH, HELP_MARGIN])
    page.still()
    style = page.page.add_style_tag(content=BARE_CANVAS)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "node.png"
        box = page.page.locator(f"[data-node-id='{node}']").bounding_box()
        clip = {"x": 0, "y": 0, "width": HELP_WIDTH, "height": box["y"] + box["height"] + HELP_MARGIN}
        page.page.screenshot(path=path, clip=clip)
        style.evaluate("element => element.remove()")
        return Image.open(path).convert("RGB")


def shot(page: FrontEnd, columns: Columns, heights: dict[str, int]) -> Image.Image:
    arrange(page, columns, heights)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.png"
        page.screenshot_graph(path, margin=MARGIN, width=WIDTH)
        return Image.open(path).convert("RGB")


def number(page: FrontEnd, picture: Image.Image, radius: int = 22) -> Image.Image:
    """Draws the numbers of STEPS at the right edge of their nodes."""
    left, top, width, _ = page._bounds()
    scale = (WIDTH - 2 * MARGIN) / width
    corners = page.page.evaluate(CORNERS)
    pen = ImageDraw.Draw(picture)
    for step, (kind, below) in STEPS.items():
        x = MARGIN + (corners[kind][0] + NODE - 22 - left) * scale
        y = MARGIN + (corners[kind][1] + below - top) * scale
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), "#ffc247")
        pen.text((x, y), str(step), "#1c1d26", ImageFont.load_default(32), anchor="mm")
    return picture


def two_columns(page: Image.Image) -> Image.Image:
    """The sheet's six rows two by two: what is learned on the left, everything else on the right, then stack and merge."""
    found = Image.new("RGB", (2 * page.width, 3 * sheet.ROW), "white")
    for place, row in enumerate((0, 2, 1, 3, 4, 5)):
        top = sheet.GAP + row * sheet.ROW
        found.paste(page.crop((0, top, page.width, top + sheet.ROW)), (place % 2 * page.width, place // 2 * sheet.ROW))
    return found


def save(picture: Image.Image, name: str) -> None:
    picture.save(ROOT / "docs" / f"{name}.jpg", quality=75, optimize=True)


def ran(page: FrontEnd, template: str, steps: int | None) -> None:
    nodes = templates.on_the_demo(GRAPHS[template]())
    if steps and "train" in nodes:
        nodes["train"].widgets["steps"] = steps
    build(page, nodes)
    page.run()
    wait_idle(page)


def help_pages(browser: Browser, server: ComfyServer, steps: int | None) -> None:
    for template in dict.fromkeys(template for template, _ in HELP.values()):
        with FrontEnd(browser, server, vue=True, scale=HELP_SCALE) as page:  # a fresh page has fresh lists of files
            ran(page, template, steps)
            for kind, height in [(kind, height) for kind, (of, height) in HELP.items() if of == template]:
                place = ROOT / "web" / "docs" / kind / "node.jpg"
                of_help(page, kind, height).save(place, quality=72, optimize=True)
            assert not page.errors, page.errors


def readme(browser: Browser, server: ComfyServer, steps: int | None) -> None:
    with FrontEnd(browser, server, vue=True) as page:
        first_lora(page)
        save(number(page, shot(page, FIRST, {"PreviewImage": 120})), "first_lora")
        assert not page.errors, page.errors
    with FrontEnd(browser, server, vue=True) as page:
        trained(page, steps)
    with FrontEnd(browser, server, vue=True) as page:  # as it looks when it is opened again
        trained(page, steps)
        save(shot(page, TRAINED, {"LoraLoom_TrainLora": 960, "PreviewImage": 320}), "graph")
        assert not page.errors, page.errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="the demo's contact sheet; the demo's LoRAs are in loras/ beside it")
    parser.add_argument("--steps", type=int, help="train for so many steps instead of what the demo takes")
    parser.add_argument("--only", choices=("readme", "help"), help="the pictures of one of them")
    choices = parser.parse_args()
    with ComfyServer() as server, open_browser() as browser:
        shapes.write_dataset(server.base / "input" / templates.FOLDER / "heart", "heart", 24, 96, 0)
        shapes.write_dataset(server.base / "input" / "my_pictures", "heart", 24, 1024, 0)
        shutil.copytree(choices.sheet.parent / "loras", server.base / "models" / "loras" / templates.FOLDER)
        checkpoints = server.base / "models" / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / "sd_xl_base_1.0.safetensors").write_bytes(EMPTY_SAFETENSORS)
        if choices.only != "help":
            save(two_columns(Image.open(choices.sheet).convert("RGB")), "results")
            readme(browser, server, choices.steps)
        if choices.only != "readme":
            help_pages(browser, server, choices.steps)


if __name__ == "__main__":
    main()
