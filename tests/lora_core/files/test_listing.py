"""Every tensor of a file is listed with what it is, and what is left out says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.faults import UnsafeFileError
from lora_loom.lora_core.files.listing import COLUMNS, Listing, listing, norm
from safetensors.torch import save_file
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(7)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


LAYER = {"x.lora_up.weight": randn(24, 4), "x.lora_down.weight": randn(4, 16).half(), "x.alpha": torch.tensor(2.0)}


def listed(path: Path, tensors: dict[str, Tensor]) -> Listing:
    save_file(tensors, path)
    return listing(path, guard.contents(path))


def rows(found: Listing) -> dict[str, tuple[str, ...]]:
    head, columns, *lines = found.text().splitlines()
    assert head == f"# {found.summary()}" and columns.split("\t") == list(COLUMNS)
    assert len(lines) == len(found.tensors), "a line each, whatever its name"
    cells = [line.split("\t") for line in lines]
    assert {len(each) for each in cells} == {len(COLUMNS)}
    return {name: tuple(told) for name, *told in cells}


def test_each_says_what_it_is(tmp_path: Path) -> None:
    held = {**LAYER, "y.diff_b": randn(5), "bundle_emb.sks.clip_l": randn(2, 8), "step": torch.tensor(3)}
    found = listed(tmp_path / "a.safetensors", held)
    told = rows(found)
    assert told.keys() == held.keys()
    for name, (shape, _, size, length, *_) in told.items():
        assert shape == (" x ".join(map(str, held[name].shape)) or "one number")
        assert int(size) == held[name].numel() * held[name].itemsize
        assert float(length) == pytest.approx(float(held[name].double().norm()), rel=1e-5)
    assert told["x.lora_down.weight"][1] == "F16" and told["x.lora_down.weight"][-2:] == ("x", "down")
    assert told["x.alpha"][-2:] == ("x", "alpha") and told["y.diff_b"][-2:] == ("y.bias", "diff_b")
    assert told["bundle_emb.sks.clip_l"][-2:] == ("", "embedding for prompts")
    assert told["step"][-1] == "left out: counter"
    size = sum(each.numel() * each.itemsize for each in held.values())
    assert found.summary() == f"6 tensors in 2 layers, {size} bytes, 1 left out"


def test_names_that_are_changed_before_they_are_looked_up(tmp_path: Path) -> None:
    """Those of XLabs."""
    names = [f"double_blocks.0.processor.qkv_lora1.{part}.weight" for part in ("down", "up")]
    told = rows(listed(tmp_path / "a.safetensors", {names[0]: randn(4, 16), names[1]: randn(24, 4)}))
    assert [told[name][-1] for name in names] == ["down", "up"]
    assert told[names[0]][-2] == told[names[1]][-2] == "diffusion_model.double_blocks.0.img_attn.qkv"


def test_a_file_that_is_refused_is_listed_with_why(tmp_path: Path) -> None:
    half = {name: tensor for name, tensor in LAYER.items() if "down" not in name}
    found = listed(tmp_path / "a.safetensors", half)
    assert "without the down factor" in found.summary() and "in 0 layers" in found.summary()
    assert all(each[-1].startswith("left out: ") for each in rows(found).values())
    found = listed(tmp_path / "b.safetensors", {**LAYER, "x.lora_up.weight_scale": randn(1)})
    assert "has an unknown part 'x.lora_up.weight_scale'" in found.summary()


def test_hostile_files(tmp_path: Path) -> None:
    """Numbers that are none are said; names that would make other lines or columns, and a cut file, are refused."""
    path = tmp_path / "a.safetensors"
    assert rows(listed(path, {**LAYER, "odd": torch.tensor([float("nan")])}))["odd"][3] == "nan"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnsafeFileError, match="cut short"):
        guard.contents(path)
    for odd in ("a\tb", "a\nb", "a\u202eb"):
        with pytest.raises(UnsafeFileError, match="control characters"):
            listed(path, {**LAYER, odd: randn(2)})


@pytest.mark.parametrize("dtype", [
    torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.uint64, torch.uint16,
    torch.bool,
])  # fmt: skip
def test_every_type_has_a_norm(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]).to(dtype)}
    assert [each.norm for each in listed(tmp_path / "a.safetensors", tensors).tensors] == [2.0]


def test_norms_are_summed_in_fp64_piece_by_piece() -> None:
    big = torch.full((3, 2**20), 300.0, dtype=torch.float16)
    assert norm(big) == pytest.approx(300 * (3 * 2**20) ** 0.5, rel=1e-12)


def test_thousands_are_listed_at_once(tmp_path: Path) -> None:
    tensors = {f"blocks.{n}.lora_{part}.weight": randn(4, 4) for n in range(2000) for part in ("up", "down")}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    begun = time.process_time()
    assert len(listing(path, guard.contents(path)).text().splitlines()) == 4002
    assert time.process_time() - begun < 2
