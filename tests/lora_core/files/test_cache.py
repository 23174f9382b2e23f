"""Values on disk: bit for bit what was put in, never what was damaged, and not more than there should be."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files.cache import Cache, trim


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def same(a, b) -> bool:
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


CONDITIONING = [
    [torch.randn(1, 7, 5), {"pooled_output": torch.randn(1, 3), "guidance": 3.5, "none": None, "flag": True}],
    [torch.zeros(1, 0, 5), {"dict": {"tensor": torch.arange(4), "dict": "x", "list": [[1, "a"], []]}, "dtype": "y"}],
]


def test_nested_values_come_back_as_they_were(cache):
    assert cache.get("a") is None
    cache.put("a", CONDITIONING)
    assert same(cache.get("a"), CONDITIONING)
    found = cache.get("a")
    found[0][0].add_(1)  # no view of the file
    assert same(cache.get("a"), CONDITIONING)
    cache.put("a", torch.ones(2))
    assert same(cache.get("a"), torch.ones(2))
    assert [path.name for path in cache.folder.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_was_computed_in_16_bits_takes_16(cache, dtype):
    narrow, wide = torch.randn(1000).to(dtype).float(), torch.randn(1000)
    for name, value in (("narrow", narrow), ("wide", wide)):
        cache.put(name, value)
        assert same(cache.get(name), value)
    sizes = {path.stem: path.stat().st_size for path in cache.folder.iterdir()}
    assert sizes["narrow"] < 2400 < 4000 < sizes["wide"]


@pytest.mark.parametrize("value", [object(), {1: 2}, [torch.ones(1), {1, 2}], (1, 2)])
def test_other_values_are_refused(cache, value):
    with pytest.raises(TypeError):
        cache.put("a", value)
    assert cache.get("a") is None


@pytest.mark.parametrize("damage", ["cut", "zeros", "one bit", "empty", "foreign", "header"])
def test_damaged_files_are_as_good_as_not_there(cache, damage):
    cache.put("a", CONDITIONING)
    path = cache.folder / "a.safetensors"
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(whole[:-10])
    elif damage == "zeros":
        path.write_bytes(bytes(len(whole)))
    elif damage == "one bit":
        whole[-9] ^= 1
        path.write_bytes(whole)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        path.write_bytes(b"this is no such file at all")
    else:
        path.write_bytes(whole.replace(b"guidance", b"guidence"))
    assert cache.get("a") is None
    cache.put("a", CONDITIONING)
    assert same(cache.get("a"), CONDITIONING)


def test_a_folder_that_cannot_be_written_does_not_stop_anything(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file")
    cache.put("a", torch.ones(1))
    assert cache.get("a") is None and "cannot save" in caplog.text


def test_what_is_old_or_too_much_is_deleted(tmp_path):
    now = time.time()
    for index, days in enumerate((40, 3, 2, 1)):
        cache = Cache(tmp_path / ("x" if index % 2 else "y"))
        cache.put(f"{index}", torch.randn(1000))
        path = cache.folder / f"{index}.safetensors"
        os.utime(path, (now - days * 86400,) * 2)
    (tmp_path / "x" / ".dead.tmp").write_bytes(b"1")
    os.utime(tmp_path / "x" / ".dead.tmp", (0, 0))
    (tmp_path / "note.txt").write_text("not ours")
    assert trim(tmp_path, 2**30, 30) == 2
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "1.safetensors", "2.safetensors", "3.safetensors", "note.txt",
    ]  # fmt: skip
    Cache(tmp_path / "x").get("1")  # used just now
    assert trim(tmp_path, 9000, 30) == 1
    assert sorted(path.stem for path in tmp_path.rglob("*.safetensors")) == ["1", "3"]
    assert trim(tmp_path / "nowhere", 1, 1) == 0
