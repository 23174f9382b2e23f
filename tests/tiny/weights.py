"""Seeded random weights that keep activations near 1, none of them zero: that would hide mistakes of a LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_TABLES = ("token_embedding", "position_embedding", "shared.weight", "relative_attention_bias")


def seeded(shapes: Mapping[str, Tensor], seed: int = 0, gain: float = 0.8, norm: float = 1.0) -> dict[str, Tensor]:
    """fp32 tensors in the shapes of a state dict, on the meta device or not. The same seed gives the same bits.

    `norm` is what scales of norms are near.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _tensor(name, tuple(shapes[name].shape), gain, norm, generator) for name in sorted(shapes)}


def _tensor(name: str, shape: tuple[int, ...], gain: float, norm: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        is_table = any(mark in name for mark in _TABLES)
        return noise * (0.2 if is_table else gain / math.sqrt(math.prod(shape[1:])))
    if name.endswith(("bias", "beta")) or not shape:
        return noise * 0.01
    return norm + noise * 0.01
