"""What reaches layers in a forward: rows of it, and which layers are given the very same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ....lora_core.training.branch import padded
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


def rows(module: nn.Module, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return what A multiplies, (rows, columns) fp32: tokens, or the patches of a convolution; at most so many, drawn
    from the CPU generator where there are more."""
    if not weight_shape(module)[2:]:
        flat = x.reshape(-1, x.shape[-1])
        return (flat if len(flat) <= most else flat[_drawn(len(flat), most, generator).to(x.device)]).float()
    return _patches(module, x, most, generator).float()


def _patches(module: Any, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Patches in the order of the weight's columns: channels, then the places of the kernel."""
    kernel = module.kernel_size
    if x.dim() == len(kernel) + 1:
        x = x[None]
    x, (strides, paddings, dilations) = padded(module, x)
    x = nn.functional.pad(x, [side for padding in reversed(paddings) for side in (padding, padding)])
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
        x = x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    places = x.shape[2 : 2 + len(kernel)]
    taken = min(prod(places), max(most // len(x), 1))
    where = torch.arange(taken) if taken == prod(places) else _drawn(prod(places), taken, generator)
    found = x[(slice(None), slice(None), *torch.unravel_index(where.to(x.device), places))]
    return rearrange(found.flatten(3), "n channels places kernel -> (n places) (channels kernel)")


def _drawn(count: int, taken: int, generator: torch.Generator) -> Tensor:
    return torch.randint(count, (taken,), generator=generator)


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
