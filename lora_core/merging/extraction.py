"""A LoRA out of the change of a weight, at an error that is measured, not estimated.

Of a dense change by randomised block Krylov iterations (Musco, Musco 2015, arXiv:1504.05477, algorithm 2), as many as
its spectrum asks for; of factors, and of what is small, exactly. Nothing is clamped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ..low_rank import Decomposition, LowRank
from ..orthonormal import orthonormal_columns
from .wire import packed_layer, unpacked_layer

_SPARE = 16  # directions beyond the rank
_FEWEST = 3  # blocks of directions, by which one sees how fast they lessen the error
_REST, _NOISE = 1e-4, 2e-8  # what further blocks may take off the squared error, of it and of the whole


@dataclass(frozen=True)
class Extracted:
    """`norm` is the Frobenius norm of the difference, `error` that of what the correction leaves of it, relative to
    `norm`; `sigma` are the singular values that were found."""

    low_rank: LowRank
    norm: float
    error: float
    sigma: Tensor

    def packed(self) -> dict[str, Any]:
        """Return tensors and figures by name."""
        return {"low_rank": packed_layer(self.low_rank), "norm": self.norm, "error": self.error, "sigma": self.sigma}

    @classmethod
    def unpacked(cls, held: Mapping[str, Any]) -> Extracted:
        """Return what was packed."""
        return cls(**{**held, "low_rank": unpacked_layer(held["low_rank"])})


def extract(
    difference: Tensor, rank: int, energy: float, name: str, pause: Callable[[], None] = lambda: None
) -> Extracted | None:
    """Return the correction nearest to `difference`, which is overwritten: of at most `rank`, and of fewer where these
    hold `energy` of its squared norm. None when there is no difference. `name` seeds the random directions. The factors
    are on the CPU. `pause` is called between passes over the difference, and may raise to cancel.

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


def cost(shape: Sequence[int], rank: int) -> float:
    """Return about how long it takes to extract that rank of a weight of that shape, beside others."""
    short = min(shape[0], prod(shape[1:]))
    return float(prod(shape)) * min(short, _FEWEST * (rank + _SPARE))


def whole_error(parts: list[Extracted]) -> float:
    """Return the error of all parts together, relative to all differences together; 0 when there is none."""
    total = sum(part.norm**2 for part in parts)
    return sqrt(sum((part.error * part.norm) ** 2 for part in parts) / total) if total else 0.0


def rank_for(sigma: Tensor, energy: float, norm: float) -> int:
    """Return the fewest values with that share of a whole of that norm; all when they do not reach it, or it is all of
    it."""
    if energy >= 1:
        return len(sigma)
    return min(int((sigma.double().square().cumsum(0) < energy * norm**2).sum()) + 1, len(sigma))


def _decompose(flat: Tensor, rank: int, name: str, kernel: tuple[int, ...], pause: Callable[[], None]) -> Decomposition:
    """The leading singular values of `flat`, on the CPU: all of them where the weight is small enough."""
    rows, columns = flat.shape
    flipped = rows > columns
    wide = flat.T if flipped else flat
    found = _leading(wide, rank, torch.Generator().manual_seed(crc32(name.encode())), pause)
    if found is None:
        return Decomposition(wide.cpu().double(), flipped=flipped, kernel=kernel, dtype=flat.dtype)
    basis, core = found
    return Decomposition(core, basis, flipped=flipped, kernel=kernel, dtype=flat.dtype)


def _leading(wide: Tensor, rank: int, seed: torch.Generator, pause: Callable[[], None]) -> tuple[Tensor, Tensor] | None:
    """An orthonormal basis of a few more than `rank` directions, in which the leading ones of `wide` lie, and what
    `wide` is in it, both in fp64 on the CPU. None when that would take as long as all of them."""
    width = rank + _SPARE
    if _FEWEST * width > len(wide):
        return None
    blocks: list[Tensor] = []
    images: list[Tensor] = []
    gram = torch.empty(0, 0, dtype=torch.float64)
    total, left = _norm(wide) ** 2, 0.0
    block = wide @ torch.randn(wide.shape[1], width, generator=seed).to(wide)
    while len(blocks) < max(_FEWEST, len(wide) // (2 * width)):
        blocks.append(_orthonormal(block, blocks, seed))
        pause()
        block = wide.T @ blocks[-1]
        images.append(block.cpu().double())
        gram = _grown(gram, images)
        before, left = left, total - float(torch.linalg.eigvalsh(gram)[-rank:].sum())
        if len(blocks) >= _FEWEST and _to_come(before - left, len(blocks)) <= _REST * left + _NOISE * total:
            return _ritz(torch.cat(blocks, 1).cpu().double(), torch.cat(images, 1), gram, width)
        pause()
        block = wide @ block
    return None


def _ritz(basis: Tensor, image: Tensor, gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` leading directions, orthonormal to fp64, of a basis that is orthonormal to fp32, and their
    images, from the image of its columns: what is of low rank is as exact as its image. `gram` is that of the image."""
    root = torch.linalg.cholesky(basis.T @ basis)
    inner = torch.linalg.solve_triangular(root, torch.linalg.solve_triangular(root, gram, upper=False).T, upper=False)
    chosen = torch.linalg.solve_triangular(root.T, torch.linalg.eigh(inner)[1][:, -count:], upper=True)
    return basis @ chosen, chosen.T @ image.T


def _grown(gram: Tensor, images: list[Tensor]) -> Tensor:
    """The inner products of all columns of `images`, of which `gram` holds those of all but the last."""
    strip = torch.cat([image.T @ images[-1] for image in images])
    return torch.cat([torch.cat([gram, strip[: len(gram)].T]), strip], 1)


def _to_come(gain: float, blocks: int) -> float:
    """Estimate what all further blocks may take off the squared error after one that took `gain` off it. Where the
    spectrum is flat about the rank what is left to gain falls as 1 / blocks^2 (Musco, Musco, theorem 1), elsewhere
    faster. The proportion of two gains tells less: the first may be that of a few large values."""
    return gain * blocks / 2


def _orthonormal(block: Tensor, others: list[Tensor], seed: torch.Generator) -> Tensor:
    """Return the part of a block at right angles to all others, made orthonormal; rounding asks for this twice. Where
    nothing is left of a column, a random direction takes its place: what rounding leaves of it may lie in the others
    once more, as in a weight of few rows, and would be counted twice."""
    if others:
        kind = torch.finfo(block.dtype)
        noise = torch.randn(block.shape, generator=seed).to(block) * (kind.eps / sqrt(len(block)))
        block = block / torch.linalg.vector_norm(block, dim=0).clamp(min=kind.tiny)
        block = _apart(orthonormal_columns(_apart(block, others) + noise), others)
    return orthonormal_columns(block)


def _apart(block: Tensor, others: list[Tensor]) -> Tensor:
    for other in others:
        block = torch.addmm(block, other, other.T @ block, alpha=-1)
    return block


def _norm(matrix: Tensor) -> float:
    """Return the Frobenius norm: the norms of rows are taken in their own type, that of all of them in fp64."""
    return float(torch.linalg.vector_norm(matrix, dim=1).cpu().double().norm())
