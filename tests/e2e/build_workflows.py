"""Makes the templates in `workflows/` in the real front end, and the pictures of three of them in docs/guide.md:

    python tests/e2e/build_workflows.py                           the JSON files
    python tests/e2e/build_workflows.py --pictures demo/loras     docs/train.jpg, stack.jpg and merge.jpg

The front end itself lays down slots, sizes and serialisation, so what ships is what a person would have saved. The
pictures show the templates after they ran with the demo's models and LoRAs, which `python dev.py demo` leaves in
demo/loras. The thumbnails of the templates are made by `build_thumbnails.py`, the README's pictures by
`build_pictures.py` and `build_screens.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from demo import shapes, templates  # noqa: E402
from harness.browser import FrontEnd, open_browser  # noqa: E402
from harness.comfyui import comfyui_path  # noqa: E402
from harness.server import ComfyServer  # noqa: E402
from PIL import Image  # noqa: E402

from e2e.template_graphs import GRAPHS  # noqa: E402
from e2e.template_nodes import Node  # noqa: E402

WORKFLOWS = ROOT / "workflows"
PICTURES = {"train": templates.TRAIN, "stack": templates.STACK, "merge": templates.MERGE}

BUILD = """async (nodes) => {
  await app.loadGraphData({nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4, last_node_id: 0, last_link_id: 0})
  const made = {}
  for (const [key, spec] of Object.entries(nodes)) {
    const node = LiteGraph.createNode(spec.type)
    if (!node) throw new Error('no node ' + spec.type)
    app.graph.add(node)
    node.pos = spec.pos
    if (spec.title) node.title = spec.title
    for (const [name, value] of Object.entries(spec.widgets)) {
      const widget = name ? node.widgets.find(w => w.name === name) : node.widgets[0]
      if (!widget) throw new Error(spec.type + ' has no widget ' + name)
      widget.value = value
    }
    if (spec.size) node.setSize(spec.size)
    node.properties = {...node.properties, ...spec.properties}
    made[key] = node
  }
  for (const [key, spec] of Object.entries(nodes))
    for (const [input, [from, output]] of Object.entries(spec.links)) {
      const source = made[from], target = made[key]
      const out = source.outputs.findIndex(o => o.name === output), into = target.inputs.findIndex(i => i.name === input)
      if (out < 0 || into < 0) throw new Error(`no ${from}.${output} or ${key}.${input}`)
      source.connect(out, target, into)
    }
}"""


def described(node: Node, version: str) -> dict[str, Any]:
    ours = node.type.startswith("LoraLoom_")
    properties: dict[str, Any] = {
        "cnr_id": "lora-loom" if ours else "comfy-core",
        "ver": version if ours else project_version(comfyui_path()),
    }
    if node.models():
        properties["models"] = node.models()
    return {**vars(node), "properties": properties}


def project_version(folder: Path) -> str:
    return re.search(r'^version = "(.+)"', (folder / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def build(page: FrontEnd, nodes: dict[str, Node]) -> dict[str, Any]:
    version = project_version(ROOT)
    page.page.evaluate(BUILD, {key: described(node, version) for key, node in nodes.items()})
    page.settle()
    return page.serialized()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="LORAS", help="make the guide's pictures; LORAS: demo/loras")
    parser.add_argument("--only", choices=PICTURES, help="one of them")
    choices = parser.parse_args()
    with ComfyServer() as server, open_browser() as browser:
        if choices.pictures:
            shapes.write_dataset(server.base / "input" / templates.FOLDER / "heart", "heart", 24, 96, 0)
            shutil.copytree(choices.pictures, server.base / "models" / "loras" / templates.FOLDER)
        for name, graph in GRAPHS.items() if not choices.pictures else ():
            with FrontEnd(browser, server) as page:
                text = json.dumps(build(page, graph()), indent=1)
                (WORKFLOWS / f"{name}.json").write_text(text + "\n", encoding="ascii")
        for name in [choices.only] if choices.only else PICTURES if choices.pictures else ():
            with FrontEnd(browser, server) as page:  # a fresh page has fresh lists of files
                build(page, templates.on_the_demo(GRAPHS[PICTURES[name]]()))
                page.run()
                wait_idle(page)
                picture(page, ROOT / "docs" / f"{name}.jpg")
                assert not page.errors, page.errors


def picture(page: FrontEnd, path: Path, width: int = 1280) -> None:
    """Taken at twice the size: below a zoom the front end draws no text."""
    page.screenshot_graph(path, width=2 * width)
    with Image.open(path) as shot:
        shot.resize((width, shot.height * width // shot.width), Image.Resampling.LANCZOS).save(path, quality=88)


def wait_idle(page: FrontEnd, seconds: int = 1800) -> None:
    """Until everything that the page queued has run. The page stays awake meanwhile, or its pictures would time out."""
    for _ in range(seconds):
        page.page.wait_for_timeout(1000)
        queue = page.server.get("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
    raise TimeoutError("the queue did not empty")


if __name__ == "__main__":
    main()
