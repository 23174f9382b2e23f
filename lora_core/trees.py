"""Nested values that hold tensors, as JSON and the tensors apart: nothing that tells of them is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def described(value: Any, tensors: list[Tensor], keep: Callable[[Tensor], Tensor]) -> Any:
    """Return the value as JSON, with what `keep` makes of its tensors, on the CPU, moved to `tensors`.

    A value is a tensor, None, bool, number or string, or lists and dicts of these. Raises TypeError for another kind.
    """
    if torch.is_tensor(value):
        tensors.append(keep(value.detach().cpu()))
        return {"tensor": len(tensors) - 1, "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: described(item, tensors, keep) for name, item in value.items()}}
    if isinstance(value, list):
        return [described(item, tensors, keep) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def restored(told: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the value again; its tensors are copies."""
    if isinstance(told, list):
        return [restored(item, tensors) for item in told]
    if not isinstance(told, dict):
        return told
    if "dict" in told:
        return {name: restored(item, tensors) for name, item in told["dict"].items()}
    return tensors[told["tensor"]].to(getattr(torch, told["dtype"]), copy=True)  # no view of a file or a message
