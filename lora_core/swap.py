"""Puts something in the place of what is there, and that back again, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

Place = tuple[Any, str, Any]  # an object or a dict, the attribute or entry of it, and what is put there


@contextmanager
def swapped(places: Iterable[Place]) -> Iterator[None]:
    """Inside, these attributes and entries are what the places say; on leaving, what they were, the last one first.
    Places may be made one by one, each when those before it hold already."""
    before: list[Place] = []
    try:
        for owner, name, value in places:
            before.append((owner, name, owner[name] if isinstance(owner, dict) else getattr(owner, name)))
            _put(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            _put(owner, name, value)


@contextmanager
def holding(tensor: Tensor, values: Tensor) -> Iterator[None]:
    """Inside, a tensor that has no history holds these values; on leaving its own, bit for bit."""
    own = tensor.clone()
    try:
        tensor.copy_(values)
        yield
    finally:
        tensor.copy_(own)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
