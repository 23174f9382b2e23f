"""Merge LoRA and Extract LoRA on ranks: the file of two is that of one, to the last byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness.calls import run_node
from harness.kinds import written
from harness.ranks import on_ranks
from lora_loom.lora_core.ranks.group import here
from lora_loom.nodes.bridge.merging.save import DTYPES, STYLES, save_proven
from lora_loom.nodes.extract_lora import ExtractLora
from lora_loom.nodes.merge_lora import MergeLora

MERGES = [{"rank": 0}, {"rank": 3}, {"rank": 0, "size_mb": 0.15}, {"rank": 0, "method": "ties"}]


def made(model: Any, tuned: Any, stack: list[tuple[str, float, float]], folder: Path) -> list[Any]:
    """The bytes of the files and the reports, by node."""
    found = []
    for choices in MERGES:
        adapter, _, report, _ = run_node(MergeLora, model=model, lora_stack=stack, strengths="", **choices)
        found.append((adapter, report))
    adapter, _, report, _ = run_node(ExtractLora, model_a=tuned, model_b=model, rank=4, energy=0.95)
    found.append((adapter, report))
    files = []
    for index, (adapter, report) in enumerate(found):
        path = folder / f"{here().rank} of {here().size} {index}.safetensors"
        save_proven(adapter, path, STYLES["comfyui"], DTYPES["fp32"], model)
        header = {name: text for name, text in adapter.metadata.items() if "date" not in name}
        files.append([report, header, torch.frombuffer(bytearray(tensors_of(path)), dtype=torch.uint8)])
    return files


def tensors_of(path: Path) -> bytes:
    """All that stands in a file behind its header."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_files_of_two_ranks_are_those_of_one(models, loras: Path, random_adapter, tmp_path: Path) -> None:
    model = models("sd15").model
    save_proven(random_adapter(model, 4, 3.0), loras / "plain.safetensors", STYLES["kohya"], DTYPES["fp32"], model)
    stack = [("plain.safetensors", 0.8, 1.0), (written(loras, "DoRA per row", model, "sd15"), 0.5, 1.0),
             (written(loras, "LoHa", model, "sd15"), -0.6, 1.0)]  # fmt: skip
    keys = [key for key in model.model.state_dict() if key.startswith("diffusion_model.") and "to_" in key][:6]
    tuned = model.clone()
    tuned.add_patches({key: ("diff", (torch.randn_like(model.model.get_parameter(key)),)) for key in keys})
    (alone,) = on_ranks(1, made, folder(tmp_path, "one"), model, tuned, stack, tmp_path)
    for found in on_ranks(2, made, folder(tmp_path, "two"), model, tuned, stack, tmp_path):
        for (report, header, data), (wanted_report, wanted_header, wanted) in zip(found, alone, strict=True):
            assert (report, header) == (wanted_report, wanted_header)
            assert len(data) and torch.equal(data, wanted)


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name
