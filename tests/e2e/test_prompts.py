"""What headless.py makes of saved workflows is what the real front end sends: for the stored graphs of
tests/console/workflow, and for every node that the server has.

After a change that is meant: python -m pytest tests/e2e/test_prompts.py --write-prompts
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.browser import FrontEnd
from harness.server import ComfyServer
from harness.workflow_api import workflow_to_api
from playwright.sync_api import Browser

STORED = Path(__file__).resolve().parents[1] / "console" / "workflow"
GRAPHS = sorted((STORED / "graphs").glob("*.json"))
TEMPLATES = sorted((STORED.parents[2] / "workflows").glob("*.json"))
ASKED = ("input", "input_order", "output", "display_name", "output_node")  # what the conversion reads of a class
UNREAD = ("tooltip", "advanced")

SENT = """async (workflow) => {
  await app.loadGraphData(workflow)
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
  const {output} = await app.graphToPrompt()
  const pairs = Object.entries(output).map(([id, {class_type, inputs}]) => [id, {class_type, inputs}])
  return JSON.stringify(Object.fromEntries(pairs))
}"""
EVERY = """async (kinds) => {
  app.graph.clear()
  for (const kind of kinds) app.graph.add(LiteGraph.createNode(kind))
  return JSON.stringify(app.graph.serialize())
}"""
DRAWN = {  # what the browser makes when it sends them, which is said in tests/console/workflow
    "WebcamCapture", "RecordAudio", "Painter", "Load3D", "Load3DAdvanced", "Preview3DAdvanced", "PreviewGaussianSplat",
    "PreviewPointCloud", "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud",
}  # fmt: skip
UNHEARD = {  # inputs that only the browser knows, which the server passes over
    "SaveGLB": {"image"}, "Preview3D": {"image"}, "ImageCompare": {"compare_view"},
}  # fmt: skip
REMOTE = {"LoadImageOutput"}  # its choices come over the network, after the node is made


@pytest.fixture(scope="module")
def page(browser: Browser, server: ComfyServer) -> Iterator[FrontEnd]:
    with FrontEnd(browser, server) as opened:
        yield opened


def bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: bare(each) for key, each in value.items() if key not in UNREAD}
    return [bare(each) for each in value] if isinstance(value, list) else value


def sent(page: FrontEnd, workflow: dict[str, Any]) -> dict[str, Any]:
    return json.loads(page.page.evaluate(SENT, workflow))


def unwrapped(node: dict[str, Any]) -> dict[str, Any]:
    """Front ends differ in what they wrap for the server, which takes it out again."""
    inputs = {k: v["__value__"] if isinstance(v, dict) and "__value__" in v else v for k, v in node["inputs"].items()}
    return {**node, "inputs": inputs}


def classes(path: Path) -> set[str]:
    return {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}


def written(document: Any) -> str:
    return json.dumps(document, separators=(",", ":")) + "\n"


def test_stored_classes_are_those_of_comfyui(server: ComfyServer, request: pytest.FixtureRequest) -> None:
    path = STORED / "object_info.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    known = server.object_info
    kinds = {*stored, *(kind for path in TEMPLATES for kind in classes(path) if kind in known)}
    now = {kind: {key: bare(known[kind][key]) for key in ASKED} for kind in sorted(kinds)}
    if request.config.getoption("--write-prompts", default=False):
        path.write_text(written(now), encoding="ascii")
        stored = now
    named = {"LoadImage", "LoadImageMask"}  # list what is in the folder of input
    assert {kind for kind in now if stored.get(kind) != now[kind]} <= named


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_stored_prompts_are_what_the_browser_sends(page: FrontEnd, path: Path, request: pytest.FixtureRequest) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    now = sent(page, stored["workflow"])
    if request.config.getoption("--write-prompts", default=False):
        path.write_text(written({**stored, "prompt": now}), encoding="ascii")
        return
    assert now == stored["prompt"]


def test_every_node_of_the_server(page: FrontEnd, server: ComfyServer) -> None:
    kinds = sorted(set(server.object_info) - DRAWN - REMOTE)
    made = json.loads(page.page.evaluate(EVERY, kinds))
    wanted, found = sent(page, made), workflow_to_api(made, server.object_info)
    assert len(wanted) == len(kinds) > 500
    for node in wanted.values():
        for name in UNHEARD.get(node["class_type"], ()):
            node["inputs"].pop(name, None)
    assert [node for key, node in wanted.items() if unwrapped(found[key]) != unwrapped(node)] == []
