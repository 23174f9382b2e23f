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
from lora_loom.lora_core.files.signatures import signatures
from lora_loom.nodes.bridge.merging.save import save_proven
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.extract_lora import ExtractLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.resize_lora import ResizeLora
from lora_loom.nodes.save_lora import SaveLora

HEADER = {
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


def test_extracted_and_continued(models, model, data, loras: Path, runs: Path) -> None:
    tuned = run_node(LoadLoraStack, model=model, lora_stack=[(FILE, 1.0, 1.0)], **OFF)[0]
    extracted = run_node(ExtractLora, model_a=tuned, model_b=model, rank=2, energy=1.0)[0]
    assert not signatures(extracted.metadata)
    adapter = train(models("sd15"), data, continue_from=FILE, rank=0, alpha=0.0).adapter
    assert not signatures(adapter.metadata)
    assert json.loads(adapter.metadata["lora_loom.continued_from"])["signatures"] == signatures(HEADER)
