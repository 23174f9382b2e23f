"""A run on a MODEL that carries LoRAs is another run than on one without, and tells of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly
from comfy_extras.nodes_model_merging import ModelMergeSimple
from harness.calls import run_node
from harness.golden_bridge import patcher
from harness.runs import train
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.kinds import Difference, LoKr
from lora_loom.lora_core.runs.recipe_json import RecipeRecord
from lora_loom.lora_core.stack.chain import Step
from lora_loom.nodes.bridge.merging.save import save_proven
from lora_loom.nodes.bridge.stack.apply_chain import KindPatch, apply_chain
from lora_loom.nodes.bridge.stack.carried import carried
from lora_loom.nodes.bridge.training import prepare
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


def differing(models, random_adapter, apart: float = 1.0) -> Any:
    """A MODEL with two layers changed by another kind than LoRA."""
    model = models("sd15").model
    layers = list(random_adapter(model).layers.items())[:2]
    return apply_chain(model, None, {name: [Step(Difference(each.delta_weight() * apart))] for name, each in layers})[0]


def test_every_kind_is_known_by_its_bytes(models, random_adapter) -> None:
    (known,) = carried(differing(models, random_adapter), None)
    assert known["layers"] == 2 and known != carried(differing(models, random_adapter, 1.0001), None)[0]
    printed = carried(differing(models, random_adapter), None, printed=True)
    assert [each["layers"] for each in printed] == [1, 1]
    torch.set_printoptions(precision=2)
    try:
        assert [known] == carried(differing(models, random_adapter), None)
        assert printed != carried(differing(models, random_adapter), None, printed=True)
    finally:
        torch.set_printoptions(profile="default")


def test_pairs_of_factors_are_told_apart() -> None:
    a, b, c = torch.eye(2), 2 * torch.eye(2), 3 * torch.eye(2)
    kinds = LoKr((a,), (b, c), 1.0), LoKr((a, b), (c,), 1.0)
    patches = [KindPatch(set(), (each, 1.0, tuple(each.tensors()))) for each in kinds]
    one, other = (carried(patcher({"a.weight": patch}), None) for patch in patches)
    assert one != other


def test_a_run_of_version_0_1_0_above_other_kinds_is_found(
    models, data, random_adapter, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio = models("sd15")
    with monkeypatch.context() as then:
        then.setattr(prepare, "carried", partial(carried, printed=True))
        before = train(trio, data, model=differing(models, random_adapter))
    (run,) = runs.iterdir()
    told = json.loads((run / "run.json").read_text())
    now = train(trio, data, model=differing(models, random_adapter))
    assert [*runs.iterdir()] == [run] and json.loads((run / "run.json").read_text())["identity"] == told["identity"]
    assert all(now.adapter.layers[name].lora_B.equal(each.lora_B) for name, each in before.adapter.layers.items())
    train(trio, data, model=differing(models, random_adapter, 1.5))
    assert len([*runs.iterdir()]) == 2


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
    (told,) = RecipeRecord.from_json(above[0].adapter.metadata["lora_loom.settings"]).base["loras"]
    assert told == carried(core(trio.model, files[0], 0.5), trio.clip)[0]
    assert "loras" not in RecipeRecord.from_json(plain.adapter.metadata["lora_loom.settings"]).base
    assert len({path.name for path in runs.iterdir()}) == 3
    told = [json.loads(path.read_text())["settings"].get("LoRAs below") for path in sorted(runs.rglob("run.json"))]
    assert sorted(map(str, told)) == sorted(["None", *(f"['model {digits}']" for digits in digits_of(trio, files[0]))])


def digits_of(trio: Any, name: str) -> list[str]:
    return [f"{carried(core(trio.model, name, at), trio.clip)[0]['weights'][:8]} at {at:g}" for at in (0.5, 0.6)]
