"""Watches what layers are given in a forward, and which are given the very same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

from torch import Tensor, nn

from ....lora_core.training.targets import weight_shape

_SEEN = 64  # numbers of an input by which it is known again
Took = Callable[[str, nn.Module, Tensor], None]


@contextmanager
def watched(layers: Mapping[str, nn.Module], took: Took) -> Iterator[None]:
    """Inside, `took` is given what every layer is called with, as its low-rank path would be."""

    def hook(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, args: took(name, module, args[0])

    with ExitStack() as undo:
        for name, module in layers.items():
            undo.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield


def columns(module: nn.Module) -> int:
    """Return how wide a row is that A of this layer multiplies."""
    return prod(weight_shape(module)[1:])


class Sharing:
    """Finds layers that are given the same tensor, from a few forwards that differ: what is equal in all of them, and
    not empty, is one input. Layers with other columns of it, as convolutions with another kernel, are told apart."""

    def __init__(self) -> None:
        self.seen: dict[str, list[object]] = {}

    def __call__(self, name: str, module: nn.Module, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        sample = flat[:: max(len(flat) // _SEEN, 1)][:_SEEN].float().cpu()
        known = sample.numpy().tobytes() if sample.any() else name
        self.seen.setdefault(name, []).append((tuple(x.shape), known, _columns_of(module)))

    def leaders(self) -> dict[str, str]:
        """Return the first layer with the same input, by layer; those that were never called are left out."""
        firsts: dict[tuple, str] = {}
        return {name: firsts.setdefault(tuple(found), name) for name, found in self.seen.items()}


def _columns_of(module: Any) -> tuple:
    shape = weight_shape(module)[1:]
    return (shape, module.stride, module.padding, module.dilation, module.padding_mode) if shape[1:] else shape
