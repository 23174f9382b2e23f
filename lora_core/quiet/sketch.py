"""The eigenpairs of C = E[x x^T], from inputs that stream by.

C of a narrow input is summed as it is. A wide one's would take hundreds of MB: of it `Y = C Omega` is summed for a
random Omega, and the eigenpairs are those of the Nystrom approximation `Y (Omega^T Y)^-1 Y^T` (Tropp, Yurtsever, Udell
and Cevher 2017, 'Fixed-rank approximation of a positive-semidefinite matrix from streaming data', arXiv:1706.05736,
algorithm 3). The trace is exact for the inputs that were looked at.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..fp64 import with_fp64
from .directions import Directions

EXACT = 1024  # columns up to which C is summed whole
_NOISE = 10  # times the rounding of C Omega, below which an eigenvalue is not believed
_OVER = 2  # columns of Omega for each pair, so that the last pairs are good, too


class Sketch:
    """Sums up inputs of `width` columns, to give `pairs` eigenpairs. The same inputs in the same order give the same
    ones on the same device."""

    def __init__(self, width: int, pairs: int, device: torch.device | str = "cpu"):
        self.width, self.pairs, self.rows = width, min(pairs, width), 0
        self.device = torch.device(device)
        probes = probes_for(width, pairs)
        self.probes = None if probes == width else _probes(width, probes, self.device)
        self.sum = torch.zeros(width, probes, device=self.device)
        self.trace = torch.zeros((), device=self.device)

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Take inputs (n, width) of any float type in."""
        wide = rows.to(self.device, torch.float32)
        self.sum.addmm_(wide.T, wide if self.probes is None else wide @ self.probes)
        self.trace += wide.square().sum()
        self.rows += len(rows)

    @torch.no_grad()
    def directions(self) -> Directions:
        """Return what was found. Raises UnfitError when the inputs were not finite or all zero, or there were none."""
        found, device = self.sum / max(self.rows, 1), with_fp64(self.device)
        trace = float(self.trace) / max(self.rows, 1)
        if not (bool(found.isfinite().all()) and trace > 0):  # nothing to be factored: say why
            return Directions.of(found.T[: self.pairs], found[0, : self.pairs], trace)
        found = found.to(device, torch.float64)
        if self.probes is None:
            values, vectors = torch.linalg.eigh(found)
        else:
            values, vectors = _nystrom(found, self.probes.to(device, torch.float64), self.pairs)
        return Directions.of(vectors.T.flip(0)[: self.pairs], values.flip(0)[: self.pairs], trace)


def probes_for(width: int, pairs: int) -> int:
    """Return how many columns are summed: all of them for a narrow input."""
    return width if width <= EXACT or _OVER * pairs >= width else _OVER * pairs


def sketch_bytes(width: int, pairs: int) -> int:
    """Return what a sketch holds while it is made; Omega, which inputs of one width share, is not counted."""
    return 4 * width * probes_for(width, pairs)


@lru_cache(16)
def _probes(width: int, count: int, device: torch.device) -> Tensor:
    """Omega (width, count), orthonormal; drawn on the CPU so that devices agree."""
    drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(width))
    return torch.linalg.qr(drawn)[0].to(device)


def _nystrom(found: Tensor, probes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, rising, and eigenvectors in columns, of the Nystrom approximation of C, of which
    `found` is C Omega; zeros where there are fewer. Where the paper shifts C to keep it positive, what is less than the
    rounding of fp32 is left out: inputs may be few, or all alike."""
    least = _NOISE * torch.finfo(torch.float32).eps * float(found.norm())
    inner = probes.T @ found
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    root = (vectors * _inverse_root(values, least)).T @ found.T  # root^T root is the approximation
    values, vectors = (each[..., -count:] for each in torch.linalg.eigh(root @ root.T))
    return values.clamp(min=0), root.T @ (vectors * _inverse_root(values, least))


def _inverse_root(values: Tensor, least: float) -> Tensor:
    """Zero for what is less than that."""
    return torch.where(values > least, values.clamp(min=least) ** -0.5, 0.0)
