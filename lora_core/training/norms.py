"""Tells how large the learned correction is, from its factors alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch

from ..adapter import TEXT_PREFIX
from .inject import Factors


@torch.no_grad()
def correction_norms(factors: Factors) -> dict[str, float]:
    """Frobenius norm of each layer's correction, which is never formed."""
    squares = torch.stack([branch.square() for branch in factors.branches.values()])
    return dict(zip(factors.branches, squares.sqrt().tolist(), strict=True))


def relative(norms: Mapping[str, float], weights: Mapping[str, float]) -> list[float]:
    """Norm of delta_W over that of the weights, of the model's layers and, when there are any, the text encoders'.

    Layers whose weight's norm is not known are left out; 0 when none is known.
    """
    model = [name for name in norms if not name.startswith(TEXT_PREFIX)]
    text = [name for name in norms if name.startswith(TEXT_PREFIX)]
    return [_share(part, norms, weights) for part in (model, text) if part]


def largest(norms: Mapping[str, float], weights: Mapping[str, float], count: int = 8) -> list[tuple[str, float]]:
    """Return the layers that changed most relative to their weights, the most first."""
    shares = [(name, norm / weights[name]) for name, norm in norms.items() if weights.get(name)]
    return sorted(shares, key=lambda share: -share[1])[:count]


def _share(names: list[str], norms: Mapping[str, float], weights: Mapping[str, float]) -> float:
    known = [name for name in names if weights.get(name)]
    total = sqrt(sum(weights[name] ** 2 for name in known))
    return sqrt(sum(norms[name] ** 2 for name in known)) / total if total else 0.0
