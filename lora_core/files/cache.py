"""Values on disk by key, one safetensors file each: tensors, and a JSON description of how they are nested.

Nothing in such a file is ever executed. Whatever cannot be read is as good as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..nested_hash import bytes_of
from ..trees import described, restored

log = logging.getLogger("lora_loom")

_VERSION = "1"
_SUFFIX = ".safetensors"


class Cache:
    """A folder of values. A value is a tensor, None, bool, number or string, or lists and dicts of these."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, key: str) -> Any:
        """Return the value, on the CPU; None when there is none, or its file is damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = [file.get_tensor(str(index)) for index in range(len(list(file.keys())))]
            if header.get("lora_loom.cache") != _VERSION or header["digest"] != _digest(header["value"], tensors):
                return None
            value = restored(json.loads(header["value"]), tensors)
            os.utime(path)  # the time of its last use, by which `trim` goes
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return value

    def put(self, key: str, value: Any) -> None:
        """Write the value, whole or not at all; a full disk is logged. Raises TypeError for another kind of value."""
        tensors: list[Tensor] = []
        told = json.dumps(described(value, tensors, _narrow))
        header = {"lora_loom.cache": _VERSION, "value": told, "digest": _digest(told, tensors)}
        data = save({str(index): tensor for index, tensor in enumerate(tensors)}, header)
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, self._path(key))
        except OSError as error:
            log.warning("cannot save an encoded file in %s: %s", self.folder, error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / (key + _SUFFIX)


def trim(folder: Path, most_bytes: int, most_days: float) -> int:
    """Delete what was not used for `most_days`, then the longest unused until the rest is at most `most_bytes`.

    Looks into all folders below. Returns how many files were deleted; one that another program holds is left.
    """
    entries = sorted(_files(folder), key=lambda entry: entry[1])
    total, oldest, deleted = sum(size for _, _, size in entries), time.time() - most_days * 86400, 0
    for path, used, size in entries:
        if used >= oldest and total <= most_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total, deleted = total - size, deleted + 1
    return deleted


def _files(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """(path, time of last use, size); also what a crash left half written."""
    for path in (*folder.rglob("*" + _SUFFIX), *folder.rglob(".*.tmp")):
        with contextlib.suppress(OSError):
            found = path.stat()
            yield path, found.st_mtime, found.st_size


def _narrow(tensor: Tensor) -> Tensor:
    """Half the size where that loses no bit: text encoders give fp32 of what they compute in 16 bits."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            if torch.equal((small := tensor.to(dtype)).float(), tensor):
                return small.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)


def _digest(described: str, tensors: list[Tensor]) -> str:
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for tensor in tensors:
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
