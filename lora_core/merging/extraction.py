"""A LoRA out of the change of a weight, at an error that is measured, not estimated.

Of a dense change by randomised SVD with power iterations (Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithm
4.4), of factors exactly. Nothing is clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, sqrt
from zlib import crc32

import torch
from torch import Tensor

from ..low_rank import Decomposition, LowRank

_SPARE, _PASSES = 16, 3  # directions beyond the rank, and passes over the difference that sharpen them


@dataclass(frozen=True)
class Extracted:
    """`norm` is the Frobenius norm of the difference, `error` that of what the correction leaves of it, relative to
    `norm`; `sigma` are the singular values that were found."""

    low_rank: LowRank
    norm: float
    error: float
    sigma: Tensor


def extract(
    difference: Tensor, rank: int, energy: float, name: str, pause: Callable[[], None] = lambda: None
) -> Extracted | None:
    """The correction nearest to `difference`, which is overwritten: of at most `rank`, and of fewer where these hold
    `energy` of its squared norm. None when there is no difference. `name` seeds the random directions. The factors are
    on the CPU. `pause` is called between passes over the difference, and may raise to cancel.

    Raises ValueError when the difference is not finite.
    """
    flat = difference.flatten(1)
    norm = _norm(flat)
    if norm == 0:
        return None
    if not isfinite(norm):
        raise ValueError(f"{name} holds NaN or infinite values; no LoRA can be made of it")
    found = _decompose(flat, rank, name, tuple(difference.shape[2:]), pause)
    low_rank = found.keep(min(rank, rank_for(found.sigma, energy, norm)))
    flat.addmm_(low_rank.lora_B.to(flat), low_rank.lora_A.to(flat), alpha=-1)
    return Extracted(low_rank, norm, _norm(flat) / norm, found.sigma)


def cut(low_rank: LowRank, rank: int, energy: float, name: str) -> Extracted | None:
    """As `extract`, of a change that is known by its factors: the best there is, in the type of `lora_A`. What need not
    be cut keeps its factors."""
    found = low_rank.decompose() if isfinite(norm := low_rank.norm()) else None
    if found is None:
        raise ValueError(f"{name} holds NaN or infinite values; no LoRA can be made of it")
    if norm == 0:
        return None
    kept = min(rank, rank_for(found.sigma, energy, float(found.sigma.norm())))
    whole = kept >= low_rank.rank
    return Extracted(low_rank if whole else found.keep(kept), norm, 0.0 if whole else found.error(kept), found.sigma)


def whole_error(parts: list[Extracted]) -> float:
    """Of all of them together, relative to all differences together."""
    total = sum(part.norm**2 for part in parts)
    return sqrt(sum((part.error * part.norm) ** 2 for part in parts) / total) if total else 0.0


def rank_for(sigma: Tensor, energy: float, norm: float) -> int:
    """The fewest values with that share of a whole of that norm; all when they do not reach it, or it is all of it."""
    if energy >= 1:
        return len(sigma)
    return min(int((sigma.double().square().cumsum(0) < energy * norm**2).sum()) + 1, len(sigma))


def _decompose(flat: Tensor, rank: int, name: str, kernel: tuple[int, ...], pause: Callable[[], None]) -> Decomposition:
    """The leading singular values of `flat`, on the CPU: all of them where the weight is small enough."""
    rows, columns = flat.shape
    flipped = rows > columns
    wide = flat.T if flipped else flat
    width = rank + _SPARE
    if 2 * width >= len(wide):
        return Decomposition(wide.cpu().double(), flipped=flipped, kernel=kernel, dtype=flat.dtype)
    seed = torch.Generator().manual_seed(crc32(name.encode()))
    basis = wide @ torch.randn(wide.shape[1], width, generator=seed).to(wide)
    for _ in range(_PASSES):
        pause()
        basis = wide.T @ torch.linalg.qr(basis)[0]
        pause()
        basis = wide @ torch.linalg.qr(basis)[0]
    pause()
    basis = torch.linalg.qr(basis)[0]
    core = (basis.T @ wide).cpu().double()
    return Decomposition(core, basis.cpu().double(), flipped=flipped, kernel=kernel, dtype=flat.dtype)


def _norm(matrix: Tensor) -> float:
    """Of rows in their own type, of all of them in fp64."""
    return float(torch.linalg.vector_norm(matrix, dim=1).cpu().double().norm())
