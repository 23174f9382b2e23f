"""A file that is made of another carries nothing that speaks of the other's bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.calls import run_node
from harness.runs import train
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.lineage import ancestors
from lora_loom.lora_core.files.permissions import Permissions
from lora_loom.lora_core.files.signatures import signatures
from lora_loom.lora_core.trust.contract import Contract, Outcome, Pictures, contract_of
from lora_loom.nodes.bridge.merging.save import save_proven
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.extract_lora import ExtractLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.resize_lora import ResizeLora
from lora_loom.nodes.save_lora import SaveLora

CONTRACT = Contract(
    concept="ink", kind="style", trigger="ink", changes="lines", strength=0.8, base="x.safetensors",
    licence="CC-BY-NC-4.0", permissions=Permissions(False, (), True, False), author="Ada", contact="ada@example.org",
    air="urn:air:sd1:lora:civitai:1@2", origins=("licensed",), real_person=True,
    pictures=Pictures("cd" * 32, 12, {"TDM reservation: 1": 2}),
    tested=Outcome("2026-11-30", 3, 2, "ef" * 32, {"neutral": 0.1}),
)  # fmt: skip
HEADER = {
    "lora_loom.contract": CONTRACT.to_text(),
    "modelspec.title": "Ink", "c2pa:manifest": "AAAA", "sigstore.bundle": "{}", "sha256": "ab" * 32, "ss_steps": "900",
    "ss_datasets": '[{"subsets": [{"class_tokens": "ink", "image_dir": "10_ink"}]}]',
}  # fmt: skip
FILE = "signed.safetensors"
OFF = {"lora_1": "None", "strength_1": 1.0, "text_strength_1": 1.0}


@pytest.fixture
def model(models, loras: Path, random_adapter) -> Any:
    found = models("sd15").model
    adapter = replace(random_adapter(found), metadata=HEADER)
    save_proven(adapter, loras / FILE, "kohya", torch.float32, found)
    return found


def merged(model: Any) -> Any:
    return run_node(MergeLora, model=model, lora_stack=[(FILE, 0.5, 0.5)], adapters={}, strengths="", rank=0)[0]


def resized(model: Any) -> Any:
    return run_node(
        ResizeLora, model=model, lora_name=FILE, rank=2, energy=1.0, size_mb=0.0, strength=1.0, text_strength=1.0
    )[0]


def converted(model: Any) -> Any:
    return run_node(ConvertLora, model=model, lora=FILE, rank=4, energy=1.0)[0]


@pytest.mark.parametrize("make", [merged, resized, converted])
def test_signatures_stay_behind_and_are_noted(model, loras: Path, make) -> None:
    name = run_node(SaveLora, adapter=make(model), model=model, name="made", format="comfyui", dtype="fp32")[0]
    header = guard.inspect(loras / name).metadata
    assert not {"c2pa:manifest", "sigstore.bundle", "sha256"} & header.keys() and header["ss_steps"] == "900"
    assert json.loads(header["lora_loom.parents"])[0]["signatures"] == signatures(HEADER)
    assert header["ss_datasets"] == HEADER["ss_datasets"], "what the parent tells of its data is still true"


def check_contract(header: dict[str, str]) -> None:
    """What a contract claims of its own file stays behind; what warns and binds stays, and the parent has it whole."""
    found = contract_of(header)
    assert found is not None and not {"concept", "kind", "changes", "strength", "air", "tested"} & found.table().keys()
    assert found.pictures.root != CONTRACT.pictures.root and found.pictures.count != CONTRACT.pictures.count
    assert found.pictures.reserved == CONTRACT.pictures.reserved
    assert "CC-BY-NC-4.0" in found.licence and found.permissions == CONTRACT.permissions
    assert (found.real_person, found.origins, found.contact) == (True, ("licensed",), "ada@example.org")
    told = next(each for each in ancestors(header) if each["name"] == "signed")
    assert told["contract"] == CONTRACT.table() and told["sha256"]
    assert json.loads(header["lora_loom.rights"])["commercial"] == "no"


@pytest.mark.parametrize("make", [merged, resized, converted])
def test_of_a_contract_stays_what_is_true(model, loras: Path, make) -> None:
    name = run_node(SaveLora, adapter=make(model), model=model, name="made", format="comfyui", dtype="fp32")[0]
    check_contract(guard.inspect(loras / name).metadata)


def test_a_new_contract_takes_back_no_duty(model, loras: Path) -> None:
    free = Contract(licence="CC0-1.0", concept="soft ink", permissions=Permissions(True, ("Sell",), True, True))
    saved = {"model": model, "format": "comfyui", "dtype": "fp32", "contract": free}
    name = run_node(SaveLora, adapter=resized(model), name="made", **saved)[0]
    found = contract_of(guard.inspect(loras / name).metadata)
    assert found.concept == "soft ink" and found.licence == "CC0-1.0 AND CC-BY-NC-4.0"
    assert found.permissions == Permissions(False, (), True, False) and found.real_person is True


def test_learned_on_a_stack(models, model, data, loras: Path, runs: Path) -> None:
    trio = models("sd15")
    stacked = run_node(LoadLoraStack, model=model, lora_stack=[(FILE, 0.5, 0.5)], **OFF)[0]
    header = train(replace(trio, model=stacked), data).adapter.metadata
    check_contract(header)
    (below,) = json.loads(header["lora_loom.learned_on"])
    assert below["strength"] == 0.5 and below["signatures"] == signatures(HEADER)
    assert "modelspec.author" not in header, "who made what was below did not make this"


def test_extracted_and_continued(models, model, data, loras: Path, runs: Path) -> None:
    tuned = run_node(LoadLoraStack, model=model, lora_stack=[(FILE, 1.0, 1.0)], **OFF)[0]
    extracted = run_node(ExtractLora, model_a=tuned, model_b=model, rank=2, energy=1.0)[0]
    assert not signatures(extracted.metadata)
    check_contract(extracted.metadata)
    adapter = train(models("sd15"), data, continue_from=FILE, rank=0, alpha=0.0).adapter
    assert not signatures(adapter.metadata)
    check_contract(adapter.metadata)
    assert json.loads(adapter.metadata["lora_loom.continued_from"])["signatures"] == signatures(HEADER)
