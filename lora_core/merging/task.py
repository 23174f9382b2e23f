"""Describes what a merge method is given: one layer that several LoRAs change."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

NOISE = 1e-7
"""Bounds what rounding leaves of zero among entries and singular values of a core, relative to the largest."""

_ONE = 1e-2  # the sine of the angle below which two directions are one


@dataclass(frozen=True)
class Task:
    """`cores` (n, p, q) are the corrections in their common core, strengths folded in, fp64 (`core_space`).

    `room` is the weight's shorter side, the most rank there is. `strengths` (n,) are those; `norms` (n,) the Frobenius
    norms of the LoRAs over all layers that more than one changes. `density` in (0, 1] is the share of entries that
    sparse methods keep. `generator` is seeded by the layer's name.
    """

    cores: Tensor
    room: int
    strengths: Tensor
    norms: Tensor
    density: float
    generator: torch.Generator


def generator(seed: int, layer: str) -> torch.Generator:
    """Make a generator with a seed of 32 bits, which is all that torch's generator for the CPU takes."""
    return torch.Generator().manual_seed(crc32(f"{seed} {layer}".encode()))


def kept_largest(cores: Tensor, density: float) -> Tensor:
    """Keep in every core the share `density` of its entries that are largest, zero elsewhere. Ties are all kept."""
    sizes = cores.abs().flatten(1)
    count = max(round(density * sizes.shape[1]), 1)
    limits = sizes.kthvalue(sizes.shape[1] - count + 1, dim=1).values
    return torch.where(cores.abs() >= limits[:, None, None], cores, 0.0)


def elected_mean(cores: Tensor) -> Tensor:
    """Entry by entry the mean of the values whose sign is that of the sum; zeros, and what is left of them after
    rounding, do not vote, and where the values cancel none is elected."""
    noise, total = cores.abs().max() * NOISE, cores.sum(0)
    agrees = (cores.sign() == total.sign()) & (cores.abs() > noise) & (total.abs() > noise)
    return torch.where(agrees, cores, 0.0).sum(0) / agrees.sum(0).clamp(min=1)


def nearest_orthonormal(rows: Tensor) -> Tensor:
    """Return the orthonormal rows nearest to `rows` of length 1 (Procrustes). Rows that are nearly the same share one
    direction, and no row gets one that none of them has."""
    left, sigma, right = torch.linalg.svd(rows, full_matrices=False)
    real = sigma > _ONE
    return left[:, real] @ right[real]
