"""The hashes that files are known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import BinaryIO

from torch import Tensor

from .. import nested_hash
from ..adapter import Adapter
from .packing import pack

_CHUNK = 2**24
_CONTENT = nested_hash.HashSpelling(
    lambda value: f"{getattr(value, '__qualname__', repr(value))};",
    tensor="{dtype} {shape};", sequence="{count}:", record="{count}:{tag!r};",
)  # fmt: skip


def data_hash(
    source: str | os.PathLike[str] | Mapping[str, Tensor], tick: Callable[[int], None] = lambda _: None
) -> str:
    """sha256 of a safetensors file's data section, 64 hex digits: `sshs_model_hash`, and its first 12 are AutoV3.

    `source` is a path, or tensors as they would be saved. It names bytes, not an effect: another dtype or an
    equivalent rescaling changes it, renaming keys in the same order does not. `tick` is told the bytes read so far.
    """
    if isinstance(source, Mapping):
        return pack(source).model_hash()
    with open(source, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return _digest(file, tick)


def content_hash(adapter: Adapter) -> str:
    """sha256 of an adapter that is no file, 64 hex digits: of the names, numbers, types and bytes of its corrections,
    whatever their order and its metadata. Like `data_hash` it names bytes, not an effect."""
    digest = hashlib.sha256()
    for name, change in sorted((*adapter.layers.items(), *adapter.others.items()), key=lambda item: item[0]):
        nested_hash.add(digest, (name, change), _CONTENT)
    return digest.hexdigest()


def file_hash(path: str | os.PathLike[str], tick: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a whole file; its first 10 digits are AutoV2. `tick` is told the bytes read so far."""
    with open(path, "rb") as file:
        return _digest(file, tick)


def part_hash(path: str | os.PathLike[str]) -> str:
    """AutoV1: 8 hex digits over 64 KiB at 1 MiB. Empty for a shorter file, whose hash would be that of nothing."""
    with open(path, "rb") as file:
        file.seek(0x100000)
        part = file.read(0x10000)
    return hashlib.sha256(part).hexdigest()[:8] if part else ""


def _digest(file: BinaryIO, tick: Callable[[int], None] = lambda _: None) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        done += len(chunk)
        tick(done)
    return digest.hexdigest()
