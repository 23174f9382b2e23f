"""The hashes that files are known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..adapter import Adapter
from ..stored import as_tuple
from .packing import pack

_CHUNK = 2**24


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
        _add(digest, (name, change))
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


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif is_dataclass(value):
        _add(digest, as_tuple(value))
    elif isinstance(value, tuple):
        digest.update(f"{len(value)}:".encode())
        for part in value:
            _add(digest, part)
    else:
        digest.update(f"{getattr(value, '__qualname__', repr(value))};".encode())


def _digest(file: BinaryIO, tick: Callable[[int], None] = lambda _: None) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        done += len(chunk)
        tick(done)
    return digest.hexdigest()
