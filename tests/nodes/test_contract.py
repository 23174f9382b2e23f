"""LoRA Contract, from the node through Train LoRA, LoRA Report and Save LoRA into a file and back to a stack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import pytest
import torch
from comfy_extras import nodes_train
from harness.calls import run_node
from harness.runs import read, train
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.lineage import CONTRACT
from lora_loom.lora_core.trust.contract import Contract, Outcome, contract_of
from lora_loom.nodes.bridge.analysis.stamp import stamped
from lora_loom.nodes.contract import LoraContract
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora
from lora_loom.nodes.train_lora import TrainLora

import nodes

TRIGGER = "inkwash"
FIGURES = """{"leakage": {"with the trigger": {"latent_ratio": 1.0}, "neutral": {"latent_ratio": 0.123456},
 "without the trigger": {"latent_ratio": null}}, "memorisation": {"samples": [{}, {}], "near": [1]}}"""


def contract(**fields: Any) -> Contract:
    return run_node(LoraContract, **fields)[0]


def save(adapter: Any, model: Any, name: str, **more: Any) -> dict[str, str]:
    saved = run_node(SaveLora, adapter=adapter, model=model, name=name, format="comfyui", dtype="fp32", **more)
    return guard.inspect(Path(folder_paths.get_folder_paths("loras")[0]) / saved[0]).metadata


def test_the_node_says_what_it_is_told_and_nothing_else() -> None:
    assert contract() == Contract()
    told = contract(
        concept=" ink\nwash ", kind="style", strength=0.8, license="CC-BY-4.0", credit="required",
        commercial_use="sell pictures", own_work=True, real_person="no",
    )  # fmt: skip
    assert told.table() == {
        "version": 1, "concept": "ink wash", "kind": "style", "strength": 0.8, "license": "CC-BY-4.0",
        "permissions": {"allowNoCredit": False, "allowCommercialUse": ["Image"]}, "data": {"from": ["own work"]},
        "shows": {"real_person": False},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [({"air": "1234"}, "urn:air"), ({"base_sha256": "12"}, "64 hex"), ({"concept": "x" * 300}, "240")],
)
def test_a_wrong_value_is_named_before_anything_runs(given: dict[str, str], said: str) -> None:
    assert said in LoraContract.validate_inputs(**given)
    assert LoraContract.validate_inputs() is True


def test_trained_tested_and_saved(models, data, loras: Path, runs: Path) -> None:
    trio = models("sd15")
    with_it = replace(contract(concept="ink", license="CC-BY-4.0", author="Ada"))
    out = run_node(
        TrainLora, model=trio.model, clip=trio.clip, vae=trio.vae, dataset=data, steps=2, rank=2, alpha=2.0,
        learning_rate=1e-3, targets="attention", seed=1, batch_size=1, accumulation=1, contract=with_it,
    )  # fmt: skip
    adapter = out[2]
    found = contract_of(adapter.metadata)
    assert (found.concept, found.trigger, found.pictures.count) == ("ink", TRIGGER, 4) and len(
        found.pictures.root
    ) == 64
    assert found.base == adapter.metadata["modelspec.base_model"]
    tested = stamped(adapter, 0.9, FIGURES, seed=7, seeds=2, alone=True)
    header = save(tested, trio.model, "tested")
    outcome = contract_of(header).tested
    assert (outcome.seed, outcome.seeds, outcome.leakage) == (7, 2, {"neutral": 0.1235})
    assert (outcome.samples, outcome.near, outcome.strength) == (2, 1, 0.9) and len(outcome.date) == 10
    assert header["modelspec.license"] == "CC-BY-4.0" and header["modelspec.author"] == "Ada"
    changed = replace(tested, layers={name: layer.scaled(0.5) for name, layer in tested.layers.items()})
    assert contract_of(save(changed, trio.model, "changed")).tested is None, "it was another that was tested"
    private = contract_of(save(tested, trio.model, "private", captions="redact"))
    assert private.pictures.root == "" and private.concept == "ink"
    own = contract_of(save(tested, trio.model, "own", license="MIT", contract=contract(concept="wash")))
    assert (own.licence, own.concept, own.author, own.trigger) == ("MIT", "wash", "Ada", TRIGGER)


def test_nobody_gets_a_contract_who_gave_none(models, data, loras: Path, runs: Path) -> None:
    trio = models("sd15")
    adapter = train(trio, data).adapter
    assert CONTRACT not in adapter.metadata
    assert CONTRACT not in save(adapter, trio.model, "plain", license="MIT", author="Ada")
    late = contract_of(save(adapter, trio.model, "late", contract=contract(concept="ink")))
    assert late.pictures.count == 4 and len(late.pictures.root) == 64, "known from the run"


def test_pictures_that_are_not_to_be_learned_from_are_named(models, pictures: Path, loras: Path, runs: Path) -> None:
    marked = next(pictures.glob("*.png"))
    marked.write_bytes(marked.read_bytes() + b"<tdm:reservation>1</tdm:reservation>")
    adapter = train(models("sd15"), read(pictures, TRIGGER)).adapter
    found = contract_of(save(adapter, models("sd15").model, "marked", contract=contract(concept="ink")))
    assert found.pictures.reserved == {"TDM reservation: 1": 1}


def test_what_is_filled_in_is_said(models, loras: Path, random_adapter) -> None:
    model = models("sd15").model
    inputs = {"adapter": random_adapter(model), "model": model, "name": "said", "format": "comfyui", "dtype": "fp32"}
    report = run_node(SaveLora, **inputs, contract=contract(concept="ink"), author="Ada")[1]
    assert report.splitlines()[2] == "contract written; filled in: author"
    assert "contract" not in run_node(SaveLora, **inputs)[1]


def test_other_savers_keep_the_header_or_lose_it_whole(models, loras: Path, random_adapter, comfy_base: Path) -> None:
    """ComfyUI's Save LoRA Weights gets tensors alone and writes no header; whoever hands the header on keeps it."""
    model = models("sd15").model
    save(random_adapter(model), model, "ours", contract=contract(concept="ink", license="MIT"))
    tensors, header = comfy.utils.load_torch_file(str(loras / "ours.safetensors"), return_metadata=True)
    comfy.utils.save_torch_file(tensors, str(loras / "again.safetensors"), metadata=header)
    assert contract_of(guard.inspect(loras / "again.safetensors").metadata).concept == "ink"
    nodes_train.SaveLoRA.execute(tensors, "loras/core")
    (bare,) = (comfy_base / "output" / "loras").glob("core*.safetensors")
    assert contract_of(guard.inspect(bare).metadata) is None
    bare.unlink()
    assert nodes.LoraLoaderModelOnly().load_lora_model_only(model, "ours.safetensors", 1.0)


def test_a_stack_says_what_matters(models, loras: Path, random_adapter) -> None:
    model = models("sd15").model
    ink = contract(concept="ink", strength=0.6, license="CC-BY-NC-4.0", base="other.safetensors")
    save(random_adapter(model), model, "ink", contract=ink)
    save(random_adapter(model), model, "oil", contract=contract(concept="Ink", license="CC-BY-4.0"))
    save(random_adapter(model), model, "plain")
    report = run_node(
        LoadLoraStack, model=model, rows="<lora:ink:0.8>\n<lora:oil:0.5>\n<lora:plain:0.5>", lora_1="None",
        strength_1=1.0, text_strength_1=1.0,
    )[3]  # fmt: skip
    lines = report.splitlines()
    assert (
        "ink: made for other.safetensors, used on sd15.safetensors; strength 0.8 is above the recommended 0.6" in lines
    )
    assert "oil: the same concept as ink (Ink): lower one of them" in lines
    assert "pictures of this stack: no commercial use (ink), credit ink, oil" in lines
    assert "no contract: plain" in lines


def test_a_stamp_needs_one_adapter_alone(random_adapter, models) -> None:
    adapter = random_adapter(models("sd15").model)
    assert isinstance(contract_of(stamped(adapter, 1.0, FIGURES, 0, 1, True).metadata).tested, Outcome)
    for given, alone in ((None, True), (adapter, False)):
        assert "alone" in stamped(given, 1.0, FIGURES, 0, 1, alone).message
    assert torch.equal(
        *(next(iter(a.layers.values())).lora_A for a in (adapter, stamped(adapter, 1.0, FIGURES, 0, 1, True)))
    )
