"""Quiet directions of made-up inputs: eigenvalues that fall as a power law, in directions that are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lora_loom.lora_core.quiet.directions import Directions, Quieting
from torch import nn

MU = 0.003


def quieting(width: int, pairs: int | None = None, seed: int = 0) -> Quieting:
    draw, pairs = torch.Generator().manual_seed(seed), pairs or width
    basis = torch.linalg.qr(torch.randn(width, pairs, generator=draw, dtype=torch.float64))[0]
    values = torch.arange(1, width + 1, dtype=torch.float64) ** -1.5
    return Directions.of(basis.T, values[:pairs], float(values.sum())).quieting(MU)


def quieting_of(layers: Mapping[str, nn.Module], pairs: int = 12) -> dict[str, Quieting]:
    """Return those of all layers but the first; layers of one width share theirs."""
    widths = {name: layer.weight.shape[1:].numel() for name, layer in layers.items()}
    made = {width: quieting(width, min(width, pairs), seed=width) for width in set(widths.values())}
    return {name: made[width] for name, width in list(widths.items())[1:]}
