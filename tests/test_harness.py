"""The harness itself: what it says about a server must be what the server did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness.browser import FrontEnd
from harness.comfyui import PACK_NAME, ROOT, link_pack
from harness.server import ComfyServer, ExecutionError, Graph, RefusedError
from PIL import Image


def picture(colour: int = 255, prefix: str = "harness") -> Graph:
    image = {"width": 64, "height": 48, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


# -- the server --------------------------------------------------------------------------------------------------------


def test_pack_is_seen_under_its_own_name(server: ComfyServer) -> None:
    link = link_pack().parent / "custom_nodes" / PACK_NAME
    assert link.samefile(ROOT)
    assert [entry.name for entry in link.parent.iterdir()] == [PACK_NAME]
    modules = {node["python_module"] for node in server.object_info.values()}
    assert f"custom_nodes.{PACK_NAME}" in modules
    assert "IMPORT FAILED" not in server.log()


def test_run_view_and_events(server: ComfyServer) -> None:
    entry = server.run(picture())
    (image,) = entry["outputs"]["2"]["images"]
    assert server.view(image) == (server.base / "output" / image["filename"]).read_bytes()
    assert Image.open(server.base / "output" / image["filename"]).size == (64, 48)
    prompt_id = entry["prompt"][1]
    server.wait_event("execution_success", prompt_id)
    kinds = {event.kind for event in server.events.all(prompt_id=prompt_id)}
    assert {"execution_start", "executing", "executed", "execution_success"} <= kinds


def test_refused_prompt_says_which_node(server: ComfyServer) -> None:
    graph = picture()
    graph["1"]["inputs"]["width"] = 0
    with pytest.raises(RefusedError, match="width") as refused:
        server.run(graph)
    assert set(refused.value.node_errors) == {"1"}


def test_half_refused_prompt_is_refused(server: ComfyServer) -> None:
    """ComfyUI would run the outputs that are in order and call that a success."""
    graph = picture(colour=7)
    graph["3"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "without a picture"}}
    with pytest.raises(RefusedError) as refused:
        server.run(graph)
    assert set(refused.value.node_errors) == {"3"}


def test_failing_node_raises_with_its_message(server: ComfyServer) -> None:
    (server.base / "input" / "broken.png").write_bytes(b"not a picture")
    graph = picture()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    with pytest.raises(ExecutionError, match="LoadImage") as failed:
        server.run(graph)
    assert failed.value.error["node_id"] == "1"


def test_killed_server_leaves_its_base_to_the_next_one(tmp_path: Path) -> None:
    with ComfyServer(tmp_path) as first:
        (image,) = first.run(picture())["outputs"]["2"]["images"]
        first.kill()
        with pytest.raises(RuntimeError, match="not running"):
            first.wait("00000000-0000-0000-0000-000000000000", timeout=5)
    with ComfyServer(tmp_path) as second:
        assert second.view(image)


def test_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(RuntimeError, match="unrecognized arguments"), ComfyServer(arguments=["--no-such-flag"]):
        pass


# -- the front end -----------------------------------------------------------------------------------------------------

# Every kind of thing the converter has to know, made by the front end itself.
SMALL = """() => {
  app.graph.clear()
  const [image, preview] = ['EmptyImage', 'PreviewImage'].map(type => LiteGraph.createNode(type))
  app.graph.add(image); app.graph.add(preview)
  image.widgets.find(w => w.name === 'color').value = Math.floor(Math.random() * 0xffffff)
  preview.pos = [400, 40]
  image.connect(0, preview, 0)
  return app.graph.serialize()
}"""


def test_drop_queue_and_picture(front_end: FrontEnd, server: ComfyServer, tmp_path: Path) -> None:
    workflow = front_end.page.evaluate(SMALL)
    front_end.page.evaluate("() => app.graph.clear()")
    front_end.drop_workflow(json.dumps(workflow))
    front_end.page.wait_for_function("(n) => app.graph.nodes.length === n", arg=len(workflow["nodes"]))
    front_end.run()
    shown = "() => app.graph.nodes.some(n => n.imgs?.length) || document.querySelector('[data-node-id] img')"
    front_end.page.wait_for_function(shown)
    front_end.screenshot_graph(tmp_path / "graph.jpg", width=800)
    with Image.open(tmp_path / "graph.jpg") as shot:
        assert shot.width == 800
        colours = shot.convert("RGB").getcolors(shot.width * shot.height)
        assert len(colours) > 100, "the picture is empty"
    assert front_end.errors == []
