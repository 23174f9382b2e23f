"""Convert LoRA makes LoHa and LoKr, or keeps what a file is, at another strength; ComfyUI's loader reads the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.calls import loaded, relative_error, run_node
from harness.kinds import written
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora

import nodes


def convert(model: Any, lora: str, **more: Any) -> tuple[Any, ...]:
    return run_node(ConvertLora, model=model, lora=lora, rank=more.pop("rank", 0), energy=1.0, **more)


def weights(model: Any, name: str, strength: float = 1.0, core: bool = False) -> dict[str, torch.Tensor]:
    if core:
        return loaded(nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, strength)[0])
    return loaded(run_node(LoadLoraStack, model=model, rows=f"<lora:{name}:{strength}>")[0])


def saved(model: Any, adapter: Any, format: str = "kohya") -> str:
    name, report = run_node(SaveLora, adapter=adapter, model=model, name="new", format=format, dtype="fp32")
    assert "0 unmatched" in report
    return name


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr"])
def test_a_file_as_it_is_at_another_strength(models, loras: Path, kind: str) -> None:
    model = models("sd15").model
    old = written(loras, kind, model, "sd15")
    adapter, _, report = convert(model, old, kind="as it is", strength=-0.6)
    assert adapter.kinds() == {kind: 3} and "0 layers" not in report
    before, wanted, found = loaded(model), weights(model, old, -0.6), weights(model, saved(model, adapter), core=True)
    for key in wanted:
        if not torch.equal(wanted[key], before[key]):
            assert relative_error(found[key] - before[key], wanted[key] - before[key]) < 1e-5, key


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_error_that_is_said_is_that_of_the_file(models, loras: Path, kind: str, rank: int) -> None:
    model = models("sd15").model
    old = written(loras, "LoRA", model, "sd15")
    adapter, _, report = convert(model, old, kind=kind, rank=rank)
    assert adapter.kinds() == {kind: 3} and f"3 layers were converted to {kind}, relative error" in report
    whole = float(re.search(r"relative error ([\d.e+-]+) %", report)[1]) / 100
    before, wanted, found = loaded(model), weights(model, old), weights(model, saved(model, adapter), core=True)
    changed = [key for key in wanted if not torch.equal(wanted[key], before[key])]
    lost = sum(float((found[key] - wanted[key]).norm()) ** 2 for key in changed)
    size = sum(float((wanted[key] - before[key]).norm()) ** 2 for key in changed)
    assert (lost / size) ** 0.5 == pytest.approx(whole, rel=0.02, abs=1e-5)
    assert (whole < 1e-5) == (rank == 0)


def test_what_is_of_the_kind_stays_bit_for_bit(models, loras: Path) -> None:
    model = models("sd15").model
    adapter, _, report = convert(model, written(loras, "LoKr", model, "sd15"), kind="LoKr")
    assert adapter.kinds() == {"LoKr": 3} and "converted" not in report
    (first,) = next(iter(adapter.others.values()))
    assert first.w1[0].shape == (4, 4) and first.w2[1].shape[0] == 3


def test_what_has_no_strength_is_said(models, loras: Path) -> None:
    model = models("sd15").model
    old = written(loras, "OFT", model, "sd15")
    with pytest.raises(ValueError, match="changed by OFT weights, which cannot be kept at strength 0.5; set"):
        convert(model, old, kind="as it is", strength=0.5)
    with pytest.raises(ValueError, match="strength is 0, which removes the whole LoRA; set another"):
        convert(model, old, strength=0.0)


def test_a_dora_at_a_strength_becomes_a_lora_that_does_it_at_1(models, loras: Path) -> None:
    model = models("sd15").model
    old = written(loras, "DoRA per row", model, "sd15")
    adapter, _, _ = convert(model, old, strength=0.4, rank=320)
    before, wanted, found = loaded(model), weights(model, old, 0.4), weights(model, saved(model, adapter))
    for key in wanted:
        if not torch.equal(wanted[key], before[key]):
            assert relative_error(found[key] - before[key], wanted[key] - before[key]) < 1e-3, key
