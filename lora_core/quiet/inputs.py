"""The inputs of a layer as rows that its lora_A multiplies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rows_of(module: nn.Module, x: Tensor, most: int | None = None, draw: torch.Generator | None = None) -> Tensor:
    """Return the inputs (n, columns) that a linear layer or a convolution multiplies its weight with, when it is called
    with `x`: tokens, or patches in the order of the weight's columns. Of more than `most` so many are drawn."""
    kernel = getattr(module, "kernel_size", ())
    if not kernel:
        rows = x.detach().reshape(-1, x.shape[-1])
        chosen = _chosen(len(rows), most, draw)
        return rows if chosen is None else rows[chosen.to(x.device)]
    patches = _patches(module, x.detach(), kernel)
    places = patches.shape[: -1 - len(kernel)]
    chosen = _chosen(places.numel(), most, draw)
    if chosen is None:
        return patches.flatten(0, -2 - len(kernel)).flatten(1)
    return patches[torch.unravel_index(chosen.to(x.device), places)].flatten(1)


def _chosen(count: int, most: int | None, draw: torch.Generator | None) -> Tensor | None:
    return None if most is None or count <= most else torch.randperm(count, generator=draw)[:most]


def _patches(module: Any, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """A view (batch, *places, channels, *kernel) of the padded input."""
    x = x if x.dim() == len(kernel) + 2 else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for at, (size, step, apart) in enumerate(zip(kernel, module.stride, module.dilation, strict=True), 2):
        x = x.unfold(at, apart * (size - 1) + 1, step)[..., ::apart]
    return x.movedim(1, 1 + len(kernel))
