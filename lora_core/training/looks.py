"""Tells what decides the cost of a module's run: all of it, and of what it is called with, but the values of
tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .branch import Branch

_PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)
_OPTIONS = "cond_or_uncond"  # is in the options of a forward, which all blocks are given
# What in them tells of one block or one forward.
_PLACES = {"block", "block_index", "block_type", "total_blocks", "transformer_index", "uuids"}


class UnknownError(Exception):
    """Says that what a block is called with cannot be looked into."""


class Alike:
    """An object in the place of which any other of the same `kind` would do."""

    kind: Any


class Looks(NamedTuple):
    """Holds all of a tensor but its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    learns: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Looks:
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)

    def made(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def replaced(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return the same value with every tensor in it changed, but for those in a forward's options, of which it has a
    copy.

    Raises UnknownError for objects that may hide some.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _PLAIN):
        return value
    if type(value) in (list, tuple):
        return type(value)([replaced(item, change) for item in value])
    if type(value) is dict:
        return dict(value) if _OPTIONS in value else {name: replaced(item, change) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: replaced(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **own)
    if isinstance(value, FunctionType) and not value.__closure__:
        return value
    raise UnknownError


def of_value(value: Any) -> Any:
    """Hashable, and equal for values that decide alike: plain ones and tensors that look the same, or one object."""
    if isinstance(value, Tensor):
        return Looks.of(value)
    if isinstance(value, _PLAIN):
        return type(value), value
    if type(value) in (list, tuple):
        return type(value), tuple(map(of_value, value))
    if type(value) is dict:
        own = {name: item for name, item in value.items() if not (_OPTIONS in value and name in _PLACES)}
        return tuple((name, of_value(item)) for name, item in own.items())
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(of_value(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Alike):
        return type(value), value.kind
    if isinstance(value, MethodType):
        return id(value.__func__), id(value.__self__)
    if isinstance(value, partial):
        return id(value.func)  # of a layer's forward, which has the layer itself among its arguments
    return id(value)


def of_module(block: nn.Module, branches: Mapping[nn.Module, Branch]) -> tuple | None:
    """Equal for modules that do the same with the same input; None where hooks of others may do anything."""
    found = []
    for name, module in block.named_modules():
        branch = branches.get(module)
        if len(module._forward_hooks) != (branch is not None) or _is_watched(module):
            return None
        own = {key: value for key, value in vars(module).items() if not key.startswith("_") and value is not module}
        if not name:
            own.pop("forward", None)
        tensors = (*module._parameters.items(), *module._buffers.items())
        weights = tuple((key, of_value(value)) for key, value in tensors)
        found.append((name, type(module), of_value(own), weights, branch and _of_branch(branch)))
    return tuple(found)


def _is_watched(module: nn.Module) -> bool:
    others = module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(others)


def _of_branch(branch: Branch) -> tuple:
    tensors = branch.lora_A, branch.lora_B, branch.keep, branch.magnitude and branch.magnitude.value
    return *map(of_value, tensors), branch.scaling == 1, branch.strength == 1, branch.muted, branch.twins is None
