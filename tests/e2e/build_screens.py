"""Makes the pictures of what LoRA Loom shows beside the graph, for help pages and a README, after `python dev.py demo`:

    python tests/e2e/build_screens.py demo/loras
    python tests/e2e/build_screens.py demo/loras --only passport

docs/runs.jpg is the panel of a run on the demo's model: another's curve laid over its own, and its previews.
docs/passport.jpg is LoRA Passport behind a merge of the demo's LoRAs that was signed with a contract.
web/docs/LoraLoom_TrainLora/run.jpg is the node while it trains, web/docs/LoraLoom_LoadLoraStack/picker.jpg the dialog
that chooses files, which are the demo's LoRAs under names of shapes, and web/docs/LoraLoom_Dataset/page.jpg the page of
pictures and captions. All are of the real front end (Nodes 2.0).
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from demo import shapes, templates  # noqa: E402
from harness.browser import FrontEnd, open_browser  # noqa: E402
from harness.server import ComfyServer  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Locator, Page, expect  # noqa: E402

from e2e.build_pictures import TRAINED, of_help, shown  # noqa: E402
from e2e.build_workflows import build, wait_idle  # noqa: E402
from e2e.template_graphs import GRAPHS  # noqa: E402
from e2e.template_nodes import Node  # noqa: E402

HELP = ROOT / "web" / "docs"
LIMIT = 58_000  # bytes of a picture in a help page
SIZE = {"width": 1280, "height": 760}
PROMPTS = "\n".join((
    "a red heart on a white background", "a yellow heart on a blue background",
    "a pink heart on a striped green background", "a green star on a black background",
))  # fmt: skip
RUNS = {"heart rank 4": 4, "heart rank 8": 8}  # the ranks of runs, by their names
LAST = list(RUNS)[-1]
LIST_TAB = ".lora-loom-runs-tab-button, [data-testid=lora-loom-runs-tab-button]"
TELL = "() => { for (const widget of app.graph.nodes[0].widgets) widget.callback?.(widget.value) }"
STACK = """<lora:lora_loom_demo/heart:0.8>
<lora:lora_loom_demo/arrow:1:0.6>
<lora:lora_loom_demo/star:0.5:off>"""
CONTRACT = {
    "kind": "object", "license": "CC-BY-4.0", "credit": "required", "merges": "allowed", "author": "Ada",
    "contact": "https://example.org/ada", "own_work": True, "real_person": "no", "living_artist": "no",
}  # fmt: skip
BOTH = {"concept": "hearts and arrows", "changes": "draws both in one picture", "leaves_alone": "backgrounds"}


def save(picture: Image.Image, path: Path, width: int, limit: int = LIMIT) -> None:
    """At most so many pixels wide, in so many bytes."""
    picture.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    for quality in range(82, 20, -6):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= limit:
            return


def shot(part: Page | Locator) -> Image.Image:
    return Image.open(BytesIO(part.screenshot())).convert("RGB")


def start(page: FrontEnd, name: str, rank: int, steps: int) -> None:
    nodes = shown(templates.on_the_demo(GRAPHS[templates.TRAIN]()), TRAINED)
    nodes["train"].widgets.update(run_name=name, rank=rank, alpha=float(rank), steps=steps)
    next(node for node in nodes.values() if node.type == "LoraLoom_Previews").widgets.update(
        prompts=PROMPTS, every=steps // 6 if name == LAST else steps
    )
    build(page, nodes)
    page.run()


def runs(page: FrontEnd, steps: int) -> None:
    """The node as it is on the way, and the panel with the last run when all are done."""
    for name, rank in RUNS.items():
        start(page, name, rank, steps)
        if name != LAST:
            wait_idle(page)
    shots = page.page.locator(".loom-body-shots")
    expect(shots).to_contain_text(f"step {steps // 6 * 4}", timeout=900_000)
    save(of_help(page, "LoraLoom_TrainLora", 560), HELP / "LoraLoom_TrainLora" / "run.jpg", 510)
    wait_idle(page)


def panel(page: FrontEnd, steps: int) -> None:
    page.page.set_viewport_size(SIZE)
    page.page.locator(LIST_TAB).click()
    first, last = (page.page.locator(".loom-runs").get_by_role("option").filter(has_text=name) for name in RUNS)
    last.click()
    first.locator(".loom-check").click()
    found = page.page.locator(".loom-panel")
    expect(found.locator(".loom-chart-key").get_by_text(next(iter(RUNS)))).to_be_visible()
    expect(found.locator(".loom-runs-shot").first).to_be_visible()
    page.page.wait_for_timeout(2000)
    save(shot(found), ROOT / "docs" / "runs.jpg", 1280, 180_000)


def stack(page: FrontEnd, steps: int) -> None:
    nodes = templates.on_the_demo(GRAPHS[templates.STACK]())
    next(node for node in nodes.values() if node.type == "LoraLoom_LoadLoraStack").widgets.update(rows=STACK)
    build(page, nodes)
    page.page.set_viewport_size({"width": 1120, "height": 640})
    page.page.evaluate(
        "import('/extensions/lora-loom/js/library/picker.js').then(({ choose }) => { choose('', { add() {} }) })"
    )
    dialog = page.page.locator("dialog.loom-picker")
    expect(dialog.locator(".loom-option img").first).to_be_visible()
    page.page.wait_for_timeout(1500)
    save(shot(dialog), HELP / "LoraLoom_LoadLoraStack" / "picker.jpg", 1000)
    page.page.keyboard.press("Escape")


def dataset(page: FrontEnd, steps: int) -> None:
    build(page, shown(templates.on_the_demo(GRAPHS[templates.TRAIN]()), (("LoraLoom_Dataset",),)))
    page.page.evaluate(TELL)
    page.page.set_viewport_size({"width": 1120, "height": 640})
    page.page.get_by_role("button", name="Pictures and captions").dispatch_event("click")
    dialog = page.page.locator(".loom-set-page:not(.loom-set-describe)")
    expect(dialog.locator("img").first).to_be_visible()
    page.page.wait_for_timeout(2000)
    save(shot(dialog), HELP / "LoraLoom_Dataset" / "page.jpg", 1000)
    page.page.keyboard.press("Escape")


def publish(server: ComfyServer, kind: str, steps: int) -> None:
    """Train a LoRA and save it signed, with a contract, as the template does, without its test."""
    graph = templates.api_graph(server, templates.PUBLISH)
    found = {node["class_type"]: key for key, node in graph.items()}
    for left_out in ("LoraLoom_Report", "LoraLoom_Passport"):
        del graph[found[left_out]]
    shapes.write_dataset(server.base / "input" / templates.FOLDER / kind, kind, 24, 96, 0)
    for name, values in {
        "Dataset": {"folder": f"{templates.FOLDER}/{kind}", "trigger": kind},
        "Contract": {**CONTRACT, "concept": f"{kind}s"},
        "TrainLora": {"steps": steps, "run_name": f"signed {kind}"},
        "SaveLora": {"name": f"signed/{kind}", "adapter": [found["LoraLoom_TrainLora"], 2]},
    }.items():
        graph[found[f"LoraLoom_{name}"]]["inputs"] |= values
    server.run(graph, timeout=1800)


def passport(page: FrontEnd, steps: int) -> None:
    rows = "\n".join(f"<lora:signed/{kind}:{strength}>" for kind, strength in (("heart", 1), ("arrow", 0.8)))
    nodes = templates.on_the_demo(GRAPHS[templates.MERGE]())
    nodes["stack"].widgets["rows"] = rows
    nodes["contract"] = Node("LoraLoom_Contract", (0, 900), {**CONTRACT, **BOTH})
    nodes["save"].widgets.update(name="hearts_and_arrows", sign=True)
    nodes["save"].links["contract"] = ("contract", "contract")
    nodes["passport"] = Node("LoraLoom_Passport", (1600, 600), {}, {"lora_name": ("save", "lora_name")})
    build(page, nodes)
    page.run()
    wait_idle(page)
    expect(page.page.locator(".loom-measure").filter(has_text="unchanged since it was signed")).to_be_attached()
    save(of_help(page, "LoraLoom_Passport", 760), ROOT / "docs" / "passport.jpg", 680, 100_000)


def write_loras(loras: Path, folder: Path) -> None:
    """The demo's LoRAs, and one of them under names of other shapes, with a picture of each."""
    shutil.copytree(loras, folder)
    for name in shapes.SHAPES:
        shutil.copy(loras / "heart.safetensors", folder / f"{name}.safetensors")
    for name in (*shapes.UNSEEN, *shapes.SHAPES):
        scene = shapes.random_scene(random.Random(name), [name])
        shapes.write_png(shapes.draw(scene, 192, 192), folder / f"{name}.png")


TAKES = {  # pixels to one of CSS, and what is done on one page
    "dataset": (1.25, [dataset]), "stack": (1.25, [stack]), "passport": (2.0, [passport]), "runs": (1.5, [runs, panel]),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loras", type=Path, help="the demo's loras/")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--only", choices=TAKES, help="one of them")
    choices = parser.parse_args()
    with ComfyServer() as server, open_browser() as browser:
        shapes.write_dataset(server.base / "input" / templates.FOLDER / "heart", "heart", 24, 96, 0)
        write_loras(choices.loras, server.base / "models" / "loras" / templates.FOLDER)
        user = server.base / "user" / "__lora_loom"
        user.mkdir(parents=True, exist_ok=True)
        (user / "signing_name.txt").write_text("ink@ada", encoding="utf-8")
        for name in [choices.only] if choices.only else TAKES:
            scale, takes = TAKES[name]
            if name == "passport":
                for kind in ("heart", "arrow"):
                    publish(server, kind, choices.steps)
            with FrontEnd(browser, server, vue=True, scale=scale) as page:
                for take in takes:
                    take(page, choices.steps)
                assert not page.errors, page.errors


if __name__ == "__main__":
    main()
