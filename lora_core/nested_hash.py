"""Hashes of values that hold tensors, however they are nested: one walk for all of them.

What it tells the hash about a value is a `HashSpelling`. There are several, for hashes stand in files, in the names of
folders and in caches, and whatever was written once has to be found again: a spelling is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .stored import as_tuple


class Digest(Protocol):
    """Anything of hashlib."""

    def update(self, data: Any, /) -> None: ...


@dataclass(frozen=True)
class HashSpelling:
    """Says what a hash is told of a value.

    `tensor` comes before the bytes of a tensor, with its {dtype} and {shape}; `taken` says which part of it counts.
    `sequence` comes before the {count} values of a list or tuple, and `record` before those of a class with names in
    files, counted with its {tag}; "" where such a class is nothing special. `field` makes what comes before each of its
    values, and `plain` the text of anything else, which may raise TypeError.
    """

    plain: Callable[[Any], str]
    tensor: str = "{dtype} {shape}"
    sequence: str = ""
    record: str = ""
    field: Callable[[Any], str] = lambda value: ""
    taken: Callable[[Tensor], Tensor] = lambda tensor: tensor


def add(digest: Digest, value: Any, spelling: HashSpelling) -> None:
    """Tell a hash of a value, tensors with all of their bytes. Tables count as the list of their sorted items. Raises
    TypeError as the spelling does."""
    if isinstance(value, Tensor):
        digest.update(spelling.tensor.format(dtype=value.dtype, shape=tuple(value.shape)).encode())
        digest.update(bytes_of(spelling.taken(value)))
    elif spelling.record and is_dataclass(value):
        tag, *fields = as_tuple(value)
        digest.update(spelling.record.format(tag=tag, count=1 + len(fields)).encode())
        for each in fields:
            digest.update(spelling.field(each).encode())
            add(digest, each, spelling)
    elif isinstance(value, (list, tuple)):
        digest.update(spelling.sequence.format(count=len(value)).encode())
        for each in value:
            add(digest, each, spelling)
    elif isinstance(value, Mapping):
        add(digest, sorted(value.items()), spelling)
    else:
        digest.update(spelling.plain(value).encode())


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor as they would be saved, without a copy where it lies so on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
