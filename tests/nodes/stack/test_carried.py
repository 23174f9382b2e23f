"""A run on a MODEL that carries LoRAs is another run than on one without, and tells of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly
from comfy_extras.nodes_model_merging import ModelMergeSimple
from harness.calls import run_node
from harness.runs import train
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.runs.recipe_json import Settings
from lora_loom.nodes.bridge.merging.save import save_proven
from lora_loom.nodes.bridge.stack.carried import carried
from lora_loom.nodes.load_stack import LoadLoraStack

import nodes

OFF = {"lora_1": "None", "strength_1": 1.0, "text_strength_1": 1.0}


@pytest.fixture
def files(make_lora, loras: Path) -> list[str]:
    for seed, name in enumerate(("ink", "oil")):
        make_lora("sd15", loras / f"{name}.safetensors", seed=seed, preset="attention+mlp", size=0.2)
    return ["ink.safetensors", "oil.safetensors"]


def core(model: Any, name: str, strength: float) -> Any:
    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, strength)[0]


def test_what_is_carried_is_told_apart(models, files: list[str], loras: Path) -> None:
    model, clip = models("sd15").model, models("sd15").clip
    assert carried(model, clip) == [] == carried(model.clone(), clip)
    merged = ModelMergeSimple().merge(model, model.clone(), 0.5)[0]
    assert merged.patches and carried(merged, clip) == [], "a merge of models is none"
    (ink,) = carried(core(model, files[0], 0.5), clip)
    assert (ink["part"], ink["strength"]) == ("model", 0.5) and ink["layers"] == 10
    assert carried(core(model, files[0], 0.5), clip) == [ink]
    (louder,), (oil,) = carried(core(model, files[0], 0.6), clip), carried(core(model, files[1], 0.5), clip)
    assert louder["weights"] == ink["weights"] != oil["weights"] and louder["strength"] == 0.6
    both = carried(core(core(model, files[0], 0.5), files[1], 0.5), clip)
    assert sorted(both, key=str) == sorted([ink, oil], key=str)


def test_loaders_of_every_kind(models, files: list[str], loras: Path) -> None:
    model, clip = models("sd15").model, models("sd15").clip
    rows = [(files[0], 0.5, 0.25)]
    for mode in ("weights", "beside"):
        stacked = run_node(LoadLoraStack, model=model, lora_stack=rows, apply=mode, **OFF)[0]
        named, *found = carried(stacked, clip)
        assert named == {
            "name": files[0],
            "sha256": data_hash(loras / files[0]),
            "strength": 0.5,
            "text_strength": 0.25,
        }
        assert found and all(each["part"] == "model" for each in found), mode
    (bypassed,) = carried(LoraLoaderBypassModelOnly().load_lora_model_only(model, files[0], 0.5)[0], clip)
    assert bypassed == carried(core(model, files[0], 0.5), clip)[0]


def test_text_counts_too(models, files: list[str], loras: Path, add_text) -> None:
    trio = models("sd15")
    save_proven(
        add_text(Adapter({}), trio.clip), loras / "te.safetensors", "kohya", torch.float32, trio.model, trio.clip
    )
    _, clip = nodes.LoraLoader().load_lora(trio.model, trio.clip, "te.safetensors", 1.0, 0.7)
    (text,) = carried(trio.model, clip)
    assert (text["part"], text["strength"]) == ("text", 0.7)


def test_a_run_names_them_and_is_one_of_its_own(models, data, files: list[str], runs: Path) -> None:
    trio = models("sd15")
    plain = train(trio, data)
    above = [train(trio, data, model=core(trio.model, files[0], strength)) for strength in (0.5, 0.6)]
    (told,) = Settings.from_json(above[0].adapter.metadata["lora_loom.settings"]).base["loras"]
    assert told == carried(core(trio.model, files[0], 0.5), trio.clip)[0]
    assert "loras" not in Settings.from_json(plain.adapter.metadata["lora_loom.settings"]).base
    assert len({path.name for path in runs.iterdir()}) == 3
    told = [json.loads(path.read_text())["settings"].get("LoRAs below") for path in sorted(runs.rglob("run.json"))]
    assert sorted(map(str, told)) == sorted(["None", *(f"['model {digits}']" for digits in digits_of(trio, files[0]))])


def digits_of(trio: Any, name: str) -> list[str]:
    return [f"{carried(core(trio.model, name, at), trio.clip)[0]['weights'][:8]} at {at:g}" for at in (0.5, 0.6)]
