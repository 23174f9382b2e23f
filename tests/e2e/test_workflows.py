"""The shipped workflows in the real front end, both renderers, and through the server's API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from demo import shapes
from harness.browser import FrontEnd, open_browser
from harness.server import ComfyServer
from harness.workflow_api import workflow_to_api
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NODES = ("Dataset", "Optimizer", "TrainLora", "SaveLora", "LoadLoraStack", "MergeLora")


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_is_one_for_each_operation() -> None:
    assert [path.stem for path in WORKFLOWS] == ["merge", "stack", "train"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_thumbnail_and_origin_of_every_node(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and picture.width >= 800
    assert path.with_suffix(".jpg").stat().st_size < 400_000
    for node in load(path)["nodes"]:
        assert node["properties"]["cnr_id"] == ("lora-loom" if node["type"].startswith("LoraLoom_") else "comfy-core")
        assert node["properties"]["ver"]
        if node["type"] in ("UNETLoader", "CLIPLoader", "VAELoader"):
            (model,) = node["properties"]["models"]
            assert (
                model["name"] in node["widgets_values"] and model["url"].endswith(model["name"]) and model["directory"]
            )


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> None:
    """The data sets, and the two LoRAs that the stack and merge workflows name, trained for a few steps."""
    for kind in ("heart", "arrow"):
        shapes.write_dataset(server.base / "input" / "lora_loom_demo" / kind, kind, 4, 96, 0)
        graph = workflow_to_api(load(ROOT / "workflows" / "train.json"), server.object_info)
        for node in graph.values():
            node["inputs"] |= (
                {"folder": f"lora_loom_demo/{kind}", "trigger": kind}
                if node["class_type"] == "LoraLoom_Dataset"
                else {}
            )
            node["inputs"] |= {"steps": 2, "run_name": kind} if node["class_type"] == "LoraLoom_TrainLora" else {}
        server.run(graph)


@pytest.mark.parametrize("path", [p for p in WORKFLOWS if p.stem != "train"], ids=lambda p: p.stem)
def test_runs_through_the_api(server: ComfyServer, files: None, path: Path) -> None:
    outputs = server.run(workflow_to_api(load(path), server.get("/object_info")))["outputs"]
    if path.stem == "stack":
        assert any(output.get("images") for output in outputs.values())
    else:
        assert (server.base / "models" / "loras" / "lora_loom_demo" / "merged.safetensors").is_file()


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes2"])
def test_opens_in_the_front_end_and_sends_what_we_convert(server: ComfyServer, files: None, vue: bool) -> None:
    with open_browser() as browser, FrontEnd(browser, server, vue=vue) as page:
        for path in WORKFLOWS:
            page.load_workflow(load(path))
            sent = {key: {k: node[k] for k in ("class_type", "inputs")} for key, node in page.graph_to_prompt().items()}
            assert sent == workflow_to_api(load(path), server.get("/object_info"))
        assert page.errors == []
        assert page.external == []


def test_help_pages_are_served(server: ComfyServer) -> None:
    for name in NODES:
        page = server.fetch(f"/extensions/lora-loom/docs/LoraLoom_{name}/en.md").decode("utf-8")
        assert page.startswith("# ")


def test_templates_are_listed(server: ComfyServer) -> None:
    assert sorted(server.get("/workflow_templates")["lora-loom"]) == ["merge", "stack", "train"]
    for name in ("merge", "stack", "train"):
        assert json.loads(server.fetch(f"/api/workflow_templates/lora-loom/{name}.json")) == load(
            ROOT / "workflows" / f"{name}.json"
        )
        assert server.fetch(f"/api/workflow_templates/lora-loom/{name}.jpg")[:2] == b"\xff\xd8"
