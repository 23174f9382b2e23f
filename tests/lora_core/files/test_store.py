"""Files are read once, again when they change, and let go of when memory is tight."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import guard, reader, store
from lora_loom.lora_core.files.faults import UnsafeFileError
from safetensors.torch import load_file, save_file


def write(path: Path, value: float = 1.0, dtype: torch.dtype = torch.float16, size: int = 64) -> Path:
    tensors = {"x.lora_up.weight": torch.full((size, 4), value), "x.lora_down.weight": torch.full((4, size), value)}
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()} | {"x.alpha": torch.tensor(2.0)}, path)
    return path


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    header = guard.inspect(path)
    return reader.tensors_of(header, reader.contents(header))


def value_of(adapter) -> float:
    return float(adapter.layers["x"].lora_B[0, 0])


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path, files = write(tmp_path / "a.safetensors"), store.Store(lambda: False)
    first = files.read(path)
    assert files.read(path) is first and value_of(first) == 1.0
    assert first.layers["x"].lora_A.data_ptr() == files.read(path).layers["x"].lora_A.data_ptr()


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_changed_file_is_read_again(tmp_path: Path, keep_time: bool, replaced: bool) -> None:
    """The size stays the same; the file is written into or replaced; it may also have the time of the old one."""
    path, files = write(tmp_path / "a.safetensors"), store.Store(lambda: False)
    before = os.stat(path)
    first = files.read(path)
    other = write(tmp_path / "b.safetensors", 3.0)
    if replaced:
        os.replace(other, path)
    else:
        with open(path, "r+b") as file, open(other, "rb") as source:
            file.write(source.read())
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = files.read(path)
    assert again is not first and value_of(again) == 3.0


def test_memory_is_let_go_of(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.safetensors") for name in "abc"]
    tight = store.Store(lambda: True)
    alive = [weakref.ref(tight.read(path)) for path in paths]
    gc.collect()
    assert [reference() is None for reference in alive] == [True, True, False]
    few = store.Store(lambda: False, most=2)
    first = few.read(paths[0])
    few.read(paths[1])
    assert few.read(paths[0]) is first
    second = weakref.ref(few.read(paths[1]))
    few.read(paths[0]), few.read(paths[2])
    gc.collect()
    assert second() is None and few.read(paths[0]) is first


@pytest.mark.parametrize("mapped", [True, False])
def test_an_open_adapter_does_not_hold_its_file(tmp_path: Path, monkeypatch, mapped: bool) -> None:
    """On Windows a mapped file could not be replaced, so nothing is mapped there."""
    path = write(tmp_path / "a.safetensors")
    monkeypatch.setattr(reader, "_MAPPED", mapped)
    tensors = tensors_of(path)
    wanted = load_file(path)
    assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    if not mapped:
        with open(path, "r+b") as file:
            file.truncate(0)
    os.replace(write(tmp_path / "b.safetensors", 5.0), path)
    assert float(tensors["x.lora_up.weight"][0, 0]) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_found_in_one_pass(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    path = write(tmp_path / "a.safetensors", dtype=dtype)
    header = guard.inspect(path)
    assert reader.all_finite(header, reader.contents(header))
    assert value_of(store.read(path)) == 1.0
    tensors = load_file(path)
    if dtype == torch.float8_e4m3fn and bad == float("inf"):
        return  # a type without infinity
    tensors["x.lora_up.weight"] = tensors["x.lora_up.weight"].float().index_fill(0, torch.tensor([7]), bad).to(dtype)
    save_file(tensors, path)
    with pytest.raises(UnsafeFileError, match=r"NaN or infinite values in 'x.lora_up.weight'"):
        store.read(path)


def test_offsets_that_are_not_aligned(tmp_path: Path) -> None:
    """A one-byte tensor in front of others; no writer makes it, the format allows it."""
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    header += b'"x.alpha":{"dtype":"F32","shape":[],"data_offsets":[1,5]}}'
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x07" + b"\x00\x00\x80\x3f")
    tensors = tensors_of(path)
    assert int(tensors["a"]) == 7 and float(tensors["x.alpha"]) == 1.0


FLOATS = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_pattern_of_bits_is_told_a_number_or_none(tmp_path: Path, dtype: torch.dtype) -> None:
    """All of them up to 16 bits, zeros of both signs and subnormals included; of wider types those at every border."""
    bits = 8 * dtype.itemsize
    integer = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
    beyond = (
        torch.tensor(torch.finfo(torch.float32).max, dtype=torch.float64) if bits == 64 else torch.tensor(torch.inf)
    )
    infinite = int(beyond.to(dtype).view(integer)) + (bits == 64) if bits > 16 else 0  # to fp32, which all is read as
    borders = [0, 1, 2, infinite - 1, infinite, infinite + 1, 2 ** (bits - 1) - 1]
    patterns = range(2**bits) if bits <= 16 else borders + [number - 2 ** (bits - 1) for number in borders]
    values = torch.tensor([p - 2**bits if p >= 2 ** (bits - 1) else p for p in patterns], dtype=integer).view(dtype)
    good = values.double().abs() <= torch.finfo(torch.float32).max  # NaN is not
    key = {v: k for k, v in reader._DTYPES.items()}[dtype]
    assert reader._finite(values[good].view(torch.uint8).numpy(), *reader._NO_NUMBER[key])
    assert 0 < (~good).sum() < len(values)
    for value in values[~good].view(integer).tolist():
        one = torch.zeros(9, dtype=integer).index_fill(0, torch.tensor([8]), value)
        assert not reader._finite(one.view(torch.uint8).numpy(), *reader._NO_NUMBER[key])


def test_only_floats_are_asked_whether_they_are_numbers(tmp_path: Path) -> None:
    """Whole numbers between them may have any bits, and a large tensor is looked at to its end."""
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.ones(3, dtype=torch.float16), "b": torch.full((5,), 0x7C00, dtype=torch.int16),
               "c": torch.ones(reader._AT_ONCE + 1, dtype=torch.float16)}  # fmt: skip
    for last in (1.0, torch.nan):
        tensors["c"][-1] = last
        save_file(tensors, path)
        header = guard.inspect(path)
        assert reader.all_finite(header, reader.contents(header)) == (last == 1.0)
