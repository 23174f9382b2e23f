"""The common small core of several corrections of one weight: the place where merge methods work.

`delta_W_i = left @ cores[i] @ right` with bases that all corrections share (Panariello et al. 2025, arXiv:2509.17786),
so that a rule on the cores is a rule on the corrections: nothing of the weight's size is made, and sums, inner products
and singular values are those of the corrections.

Rules on single entries (TIES, DARE, magnitudes) depend on the basis. The one taken here is given by the corrections and
not by how they were written down: the eigenvectors of `sum_i delta_W_i delta_W_i^T` and `sum_i delta_W_i^T delta_W_i`.
Other factors of the same corrections, or another order of them, give the same result. Signs of the basis vectors are
left open; no rule may depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..low_rank import Decomposition, LowRank

_NOISE = 1e-14  # of squared singular values, relative to the largest


@dataclass(frozen=True)
class CoreSpace:
    """`left` (out, p) and `right` (q, in) orthonormal, `cores` (corrections, p, q), all fp64."""

    left: Tensor
    right: Tensor
    cores: Tensor
    kernel: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, terms: Sequence[LowRank]) -> CoreSpace:
        """Raises ValueError when the corrected weights differ in shape."""
        total = LowRank.concat(terms)
        left, upper = _basis(total.lora_B.double())
        right, lower = _basis(total.lora_A.double().T)
        ranks = [term.rank for term in terms]
        rows, columns = _principal(upper, lower, ranks), _principal(lower, upper, ranks)
        pairs = zip((rows.T @ upper).split(ranks, 1), (columns.T @ lower).split(ranks, 1), strict=True)
        cores = torch.stack([up @ down.T for up, down in pairs])
        return cls(left @ rows, (right @ columns).T, cores, total.kernel, total.lora_A.dtype)

    def decompose(self, core: Tensor) -> Decomposition:
        """Decompose the correction `left @ core @ right`."""
        if core.shape[0] <= core.shape[1]:
            return Decomposition(core, self.left, self.right, kernel=self.kernel, dtype=self.dtype)
        return Decomposition(core.T, self.right.T, self.left.T, flipped=True, kernel=self.kernel, dtype=self.dtype)


def _basis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """`factor = q @ r`, q with orthonormal columns."""
    if factor.shape[1] < factor.shape[0]:
        return torch.linalg.qr(factor)
    return torch.eye(len(factor), dtype=factor.dtype), factor


def _principal(upper: Tensor, lower: Tensor, ranks: list[int]) -> Tensor:
    """Eigenvectors of `sum_i C_i C_i^T`, the strongest first, without those that nothing reaches, for
    `C_i = upper_i @ lower_i^T`, which are not multiplied out. Each is `q_i @ small_i` with orthonormal columns first,
    so that ill-balanced factors cost no digits."""
    bases, sides = [], []
    for up, down in zip(upper.split(ranks, 1), lower.split(ranks, 1), strict=True):
        q, r = torch.linalg.qr(up)
        small = r @ down.T
        bases.append(q)
        sides.append(q @ (small @ small.T))
    gram = torch.cat(sides, 1) @ torch.cat(bases, 1).T
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    kept = (values > values[-1] * _NOISE) if values[-1] > 0 else torch.arange(len(values)) == len(values) - 1
    return vectors[:, kept].flip(1)
