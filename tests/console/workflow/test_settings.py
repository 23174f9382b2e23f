"""`--set`: which field a name means, which value a text means, and what is said of neither."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from lora_loom.console.workflow import saved, settings
from lora_loom.console.workflow.prompt import Converted, convert

NOW = datetime(2026, 3, 4)


@pytest.fixture
def done(object_info: dict[str, Any]) -> Converted:
    inputs = {"seed": 1, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    size = {"resize_type": "scale dimensions", "resize_type.width": 5, "resize_type.height": 6, "scale_method": "area"}
    return Converted(
        {
            "3": {"class_type": "KSampler", "inputs": {**inputs, "model": ["1", 0]}, "_meta": {"title": "First"}},
            "4": {"class_type": "KSampler", "inputs": dict(inputs), "_meta": {"title": "KSampler"}},
            "5": {"class_type": "ResizeImageMaskNode", "inputs": size},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0]}, "_meta": {"title": "v1.5 words"}},
            "7": {"class_type": "LoraLoom_TrainLora", "inputs": {"steps": 5, "gradient_checkpointing": True}},
        }
    )


@pytest.mark.parametrize(
    ("setting", "node", "name", "value"),
    [
        ("3.steps=500", "3", "steps", 500),
        ("first.steps= 7", "3", "steps", 7),
        ("3.seed=18446744073709551615", "3", "seed", 2**64 - 1),
        ("KSampler.cfg=2", "4", "cfg", 2.0),
        ("4.sampler_name=heun", "4", "sampler_name", "heun"),
        ("CLIPTextEncode.text=a=b. c", "6", "text", "a=b. c"),
        ("v1.5 words.text=x", "6", "text", "x"),
        ("text=", "6", "text", ""),
        ("5.resize_type.width=9", "5", "resize_type.width", 9),
        ("Train LoRA.steps=9", "7", "steps", 9),
        ("LoraLoom_TrainLora.rank=16", "7", "rank", 16),
        ("learning_rate=1e-4", "7", "learning_rate", 1e-4),
        ("gradient_checkpointing=no", "7", "gradient_checkpointing", False),
    ],
)
def test_set(setting: str, node: str, name: str, value: Any, done: Converted, object_info: dict[str, Any]) -> None:
    assert settings.apply([setting], done, object_info) == []
    found = done.prompt[node]["inputs"][name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("steps", "write it as NODE.INPUT=VALUE"),
        ("=5", "write it as NODE.INPUT=VALUE"),
        ("3.steps=many", "steps is 'many'; write a whole number"),
        ("3.steps=2.5", "write a whole number"),
        ("3.steps=nan", "write a whole number"),
        ("3.cfg=inf", "write a number"),
        ("3.steps=0", "steps is 0; write a number from 1 to 10000"),
        ("3.denoise=1.5", "write a number from 0.0 to 1.0"),
        ("3.sampler_name=hewn", "did you mean heun"),
        ("3.stepps=1", "node 3 has no field stepps; did you mean steps?"),
        ("3.model=1", "model of node 3 is a connection and no field"),
        ("33.steps=1", "no node is called 33; did you mean 3?"),
        ("Frist.steps=1", "no node is called Frist; did you mean First?"),
        ("cfg=1", "nodes 3, 4 have a field cfg; write 3.cfg"),
        ("stepz=1", "no node has a field stepz; did you mean steps"),
        ("7.gradient_checkpointing=maybe", "write true or false"),
        ("5.resize_type=sideways", "resize_type is 'sideways'"),
        ("5.resize_type.multiplier=1", "has no field resize_type.multiplier"),
    ],
)
def test_refused(setting: str, said: str, done: Converted, object_info: dict[str, Any]) -> None:
    (problem,) = settings.apply([setting], done, object_info)
    assert problem.startswith(f"--set {setting}: ") and said in problem


def test_all_that_is_wrong_is_said_and_the_rest_is_set(done: Converted, object_info: dict[str, Any]) -> None:
    wrong = settings.apply(["3.steps=x", "3.cfg=2", "none.x=1"], done, object_info)
    assert len(wrong) == 2 and done.prompt["3"]["inputs"]["cfg"] == 2.0


def test_another_choice_brings_its_own_fields(done: Converted, object_info: dict[str, Any]) -> None:
    changes = ["5.resize_type=scale by multiplier", "5.resize_type.multiplier=0.5"]
    assert settings.apply(changes, done, object_info) == []
    inputs = {"resize_type": "scale by multiplier", "resize_type.multiplier": 0.5, "scale_method": "area"}
    assert done.prompt["5"]["inputs"] == inputs


def test_a_title_that_two_have_is_told(done: Converted, object_info: dict[str, Any]) -> None:
    done.prompt["4"]["_meta"]["title"] = "First"
    (problem,) = settings.apply(["First.steps=1"], done, object_info)
    assert "First is the name of nodes 3, 4; write 3.steps" in problem


def test_what_a_subgraph_shows_is_set_in_its_place_alone(graphs: dict[str, Any], object_info: dict[str, Any]) -> None:
    done = convert(saved.read(graphs["subgraphs"]["workflow"]), object_info, NOW)
    assert settings.apply(["9.steps=77", "10:8:5.cfg=1.5"], done, object_info) == []
    steps = {key: node["inputs"]["steps"] for key, node in done.prompt.items() if node["class_type"] == "KSampler"}
    assert steps == {"9:8:5": 77, "10:8:5": 46} and done.prompt["10:8:5"]["inputs"]["cfg"] == 1.5
    (problem,) = settings.apply(["9.stepz=1"], done, object_info)
    assert "node 9 has no field stepz; did you mean steps?" in problem


def test_a_primitive_is_set_for_all_that_it_feeds(graphs: dict[str, Any], object_info: dict[str, Any]) -> None:
    done = convert(saved.read(graphs["primitives"]["workflow"]), object_info, NOW)
    assert settings.apply(["the seed.value=11"], done, object_info) == []
    seeds = [node["inputs"]["seed"] for node in done.prompt.values() if node["class_type"] == "KSampler"]
    assert seeds == [11, 11]


def test_a_primitive_that_feeds_only_what_does_not_run_has_nothing_to_set(object_info: dict[str, Any]) -> None:
    outputs = [{"name": "INT", "type": "INT", "links": [1]}]
    primitive = {"id": 1, "type": "PrimitiveNode", "widgets_values": [5], "outputs": outputs}
    width = {"name": "width", "type": "INT", "link": 1, "widget": {"name": "width"}}
    muted = {"id": 2, "type": "EmptyImage", "mode": 2, "inputs": [width]}
    done = convert(saved.read({"nodes": [primitive, muted], "links": [[1, 1, 0, 2, 0, "INT"]]}), object_info, NOW)
    (problem,) = settings.apply(["1.value=6"], done, object_info)
    assert "no node is called 1" in problem
