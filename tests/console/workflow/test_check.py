"""Everything that is wrong with a workflow is said at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from operator import getitem
from pathlib import Path
from random import Random
from typing import Any

import pytest
from lora_loom.console import document

WORKFLOWS = sorted((Path(__file__).resolve().parents[3] / "workflows").glob("*.json"))


def said(workflow: dict[str, Any], object_info: dict[str, Any], *changes: str) -> list[str]:
    return [problem.text for problem in document.prompt_of(workflow, object_info, changes)[1]]


def picture(**inputs: Any) -> dict[str, Any]:
    image = {"width": 64, "height": 64, "batch_size": 1, "color": 0, **inputs}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


def test_nothing_is_wrong(object_info: dict[str, Any]) -> None:
    prompt, wrong = document.prompt_of(picture(), object_info, ["1.width=128"])
    assert wrong == [] and prompt["1"]["inputs"]["width"] == 128
    assert document.prompt_of({"prompt": picture()}, object_info)[0] == picture()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem.split(" - ")[0])
def test_of_a_template_only_the_models_are_missing(path: Path, object_info: dict[str, Any]) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    models = {model["name"]: model for node in workflow["nodes"] for model in node["properties"].get("models", [])}
    wrong = said(workflow, object_info)
    assert len(wrong) == len(models)
    for name, model in models.items():
        (line,) = [each for each in wrong if name in each]
        assert f"models/{model['directory']}" in line and model["url"] in line


def test_all_at_once(object_info: dict[str, Any]) -> None:
    graph = picture(width=0, height="tall")
    graph["2"]["inputs"]["images"] = ["1", 3]
    graph["3"] = {"class_type": "PreviewImage", "inputs": {}}
    graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    graph["5"] = {"class_type": "NoSuch", "inputs": {}}
    graph["6"] = {"class_type": "NoSuch", "inputs": {}}
    graph["3"]["inputs"] = {}
    wrong = said(graph, object_info, "1.with=3", "8.x=1")
    for text in (
        "--set 1.with=3: node 1 has no field with; did you mean width?",
        "--set 8.x=1: no node is called 8",
        "nodes 5, 6: this ComfyUI has no NoSuch; install the pack that has it",
        "node 2 (SaveImage): its input images comes from output 3 of node 1, which has 1",
        "node 1 (EmptyImage): width is 0; write a number from 1 to 16384",
        "node 1 (EmptyImage): height is 'tall'; write a whole number",
        "node 3 (PreviewImage): its input images is not connected",
        "node 4 (PreviewImage): its input images comes from node 9, which is not there",
    ):
        assert any(each.startswith(text) for each in wrong), text
    assert len(wrong) == 8


def test_a_missing_class_is_told_with_its_pack(object_info: dict[str, Any]) -> None:
    for pack, cure in (("some-pack", "install the pack some-pack"), ("comfy-core", "update ComfyUI")):
        node = {"id": 1, "type": "NoSuch", "properties": {"cnr_id": pack}}
        assert said({"nodes": [node], "links": []}, object_info) == [f"node 1: this ComfyUI has no NoSuch; {cure}"]


def test_what_leads_nowhere_is_not_judged(object_info: dict[str, Any]) -> None:
    graph = picture()
    graph["3"] = {"class_type": "EmptyImage", "inputs": {"width": 0}}
    assert said(graph, object_info) == []
    del graph["2"]
    assert said(graph, object_info) == [
        "nothing in the workflow makes an output; add a node that saves or shows something"
    ]


def test_a_file_that_is_not_there_is_told_with_the_one_that_is_meant(object_info: dict[str, Any]) -> None:
    info = json.loads(json.dumps(object_info))
    info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["sd_xl_base.safetensors", "other.pt"]
    info["CheckpointLoaderSimple"]["output_node"] = True
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_bass.safetensors"}}}
    assert said(graph, info) == [
        "node 1 (CheckpointLoaderSimple): the file sd_xl_bass.safetensors of ckpt_name is not there; "
        "did you mean sd_xl_base.safetensors?"
    ]
    (problem,) = document.prompt_of(graph, info)[1]
    assert (problem.node, problem.name, problem.sure) == ("1", "ckpt_name", False)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_file_that_is_no_workflow_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="x.json"):
        document.read(tmp_path / "x.json")


def test_a_node_without_a_class_is_refused(object_info: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="node 1 has no class_type"):
        document.prompt_of({"1": {"inputs": {}}}, object_info)


VALUES = (None, 0, -1, "", "x", [], {}, [1], {"a": 1}, 1.5, True, ["1", 0], "-10")


def places_in(value: Any, way: tuple = ()) -> Iterator[tuple]:
    yield way
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        yield from places_in(each, (*way, key))


@pytest.mark.parametrize("kind", ["workflow", "prompt"])
def test_of_a_broken_file_no_other_error_comes(
    kind: str, graphs: dict[str, Any], object_info: dict[str, Any]
) -> None:  # fmt: skip
    """150 files with one to three places changed or gone: they are converted, or refused with a sentence."""
    draw, taken = Random(0), 0
    for _ in range(150):
        broken = json.loads(json.dumps(draw.choice(list(graphs.values()))[kind]))
        for _ in range(draw.randint(1, 3)):
            *way, last = draw.choice([way for way in places_in(broken) if way])
            holder = reduce(getitem, way, broken)
            if draw.random() < 0.4 and isinstance(holder, dict):
                del holder[last]
            else:
                holder[last] = draw.choice(VALUES)
        with suppress(ValueError):
            document.prompt_of(broken, object_info, ["seed=5"])
            taken += 1
    assert 20 < taken < 150
