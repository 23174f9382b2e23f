"""One low-rank weight correction and its algebra.

`delta_W = (alpha / rank) * B @ A` (Hu et al. 2021, arXiv:2106.09685). A convolution is the same thing on its
flattened weight: `A` then has `in_channels * prod(kernel)` columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from .stored import stored


@stored("lora_A lora_B alpha kernel", tag="LowRank")
@dataclass(frozen=True, eq=False)
class LowRank:
    """`lora_A` (rank, in), `lora_B` (out, rank), `alpha`; `kernel` is the spatial shape of a convolution's weight."""

    lora_A: Tensor
    lora_B: Tensor
    alpha: float
    kernel: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        a, b = self.lora_A.shape, self.lora_B.shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
            found = f"A is {tuple(a)}, B is {tuple(b)}"
            raise ValueError(f"factors do not pair: {found}; expected (rank, in) and (out, rank)")
        if self.kernel and a[1] % prod(self.kernel):
            raise ValueError(f"A has {a[1]} columns, which kernel {self.kernel} does not divide")

    @classmethod
    def from_conv(cls, down: Tensor, up: Tensor, alpha: float, mid: Tensor | None = None) -> LowRank:
        """From a file's factors: `down` (rank, in[, *kernel]), `up` (out, rank[, 1...]).

        `mid` (rank_up, rank_down, *kernel) is a Tucker core between 1x1 factors; it is folded into A, which keeps
        `alpha / rank_down` as ComfyUI and LyCORIS scale it.
        """
        if mid is None:
            return cls(down.flatten(1), up.flatten(1), alpha, tuple(down.shape[2:]))
        folded = torch.einsum("ab...,bi->ai...", mid, down.flatten(1))
        return cls(folded.flatten(1), up.flatten(1), alpha / down.shape[0] * len(folded), tuple(mid.shape[2:]))

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def is_spatial(self) -> bool:
        """Return whether it corrects a convolution that looks at more than one place."""
        return prod(self.kernel) > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight this corrects: (out, in) or (out, in_channels, *kernel)."""
        return (self.lora_B.shape[0], self.lora_A.shape[1] // prod(self.kernel), *self.kernel)

    def num_parameters(self) -> int:
        return self.lora_A.numel() + self.lora_B.numel()

    def to(self, *args: Any, **kwargs: Any) -> LowRank:
        """As `Tensor.to`, on both factors."""
        return replace(self, lora_A=self.lora_A.to(*args, **kwargs), lora_B=self.lora_B.to(*args, **kwargs))

    def delta_weight(self) -> Tensor:
        """Return the dense correction, shaped like the weight, in the factors' dtype."""
        return (self.lora_B * self.scaling @ self.lora_A).reshape(self.shape)

    def add_to_(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """`weight += strength * delta_W` in place, one `addmm_`; nothing of the weight's size is allocated.

        Types narrower than their accumulator (fp8, and fp16 on a CPU) are summed in fp32 and rounded once.
        """
        if weight.numel() != prod(self.shape) or weight.shape[0] != self.shape[0]:
            raise ValueError(f"a correction of shape {self.shape} does not fit a weight of shape {tuple(weight.shape)}")
        direct = weight.is_contiguous() and _sums_exactly(weight)
        flat = weight.view(weight.shape[0], -1) if direct else _widened(weight.reshape(weight.shape[0], -1))
        factors = self.to(device=flat.device, dtype=flat.dtype)
        flat.addmm_(factors.lora_B, factors.lora_A, alpha=strength * self.scaling)
        return weight if direct else weight.copy_(flat.view(weight.shape))

    def scaled(self, strength: float) -> LowRank:
        return replace(self, alpha=self.alpha * strength)

    def in_rows(self, start: int, total: int) -> LowRank:
        """Return the same correction of rows `start : start + out` of a taller fused weight with `total` rows."""
        rows = self.lora_B.new_zeros(total, self.rank)
        rows[start : start + self.lora_B.shape[0]] = self.lora_B
        return replace(self, lora_B=rows)

    def rows(self, start: int, length: int) -> LowRank:
        """Return the part of the correction that falls on `length` rows from `start`; B is a view."""
        return replace(self, lora_B=self.lora_B[start : start + length])

    @staticmethod
    def concat(items: Iterable[LowRank]) -> LowRank:
        """Return the exact sum of any ranks and alphas: factors side by side, scaling folded into B, alpha = rank.

        Mixed dtypes are promoted. Raises ValueError when the corrected weights differ in shape.
        """
        items = list(items)
        shapes = {item.shape for item in items}
        if len({(s[0], prod(s[1:])) for s in shapes}) != 1 or len({s for s in shapes if len(s) > 2}) > 1:
            raise ValueError(f"cannot add corrections of weights shaped {sorted(shapes)}")
        dtype = torch.float32
        for item in items:
            dtype = torch.promote_types(dtype, item.lora_B.dtype)
        lora_A = torch.cat([item.lora_A.to(dtype) for item in items])
        lora_B = torch.cat([item.lora_B.to(dtype) * item.scaling for item in items], dim=1)
        return LowRank(lora_A, lora_B, float(lora_A.shape[0]), max((item.kernel for item in items), key=len))

    def inner(self, other: LowRank) -> float:
        """Frobenius inner product of the two corrections from Gram matrices, fp64, O((out + in) * rank^2)."""
        left = self.lora_B.double().T @ other.lora_B.double()
        right = self.lora_A.double() @ other.lora_A.double().T
        return self.scaling * other.scaling * float((left * right).sum())

    def norm(self) -> float:
        """Frobenius norm of delta_W."""
        return max(self.inner(self), 0.0) ** 0.5

    def distance(self, other: LowRank) -> float:
        """Frobenius norm of the difference, without the cancellation of subtracting squared norms."""
        pair = [self.to(torch.float64), other.scaled(-1.0).to(torch.float64)]
        return float(_core(*LowRank.concat(pair)._folded())[1].norm())

    def _folded(self) -> tuple[Tensor, Tensor]:
        """`delta_W = up @ down` or its transpose, whichever has fewer rows, in fp64."""
        up, down = self.lora_B.double() * self.scaling, self.lora_A.double()
        return (up, down) if up.shape[0] <= down.shape[1] else (down.T, up.T)

    def singular_values(self) -> Tensor:
        """Return all singular values of delta_W that its rank allows, descending, fp64."""
        core = _core(*self._folded())[1]
        return torch.linalg.eigvalsh(core @ core.T).flip(0).clamp(min=0).sqrt()[: min(core.shape)]

    def decompose(self) -> Decomposition:
        """The singular values with all that it takes to keep any number of them."""
        basis, core = _core(*self._folded())
        flipped = self.lora_B.shape[0] > self.lora_A.shape[1]
        return Decomposition(core, basis, flipped=flipped, kernel=self.kernel, dtype=self.lora_A.dtype)

    def truncate(self, rank: int | None = None, energy: float | None = None) -> LowRank:
        """Return the nearest correction of lower rank (Eckart-Young), never through the dense matrix, never clamped.

        `rank` is the most that is kept; `energy` in (0, 1] keeps the fewest singular values whose squares make up
        that share of the sum. The result has alpha = rank and balanced factors (equal norms per component, kind to
        fp16). QR of the shorter side, then a symmetric eigenproblem of the small core, in fp64: exact to the factors'
        own dtype.
        """
        if rank is not None and rank < 1 or energy is not None and not 0 < energy <= 1:
            raise ValueError(f"cannot truncate to rank {rank}, energy {energy}: use rank >= 1 and 0 < energy <= 1")
        found = self.decompose()
        return found.keep(min(rank or self.rank, found.rank_for(energy)))


class Decomposition:
    """`delta_W = left @ core @ right`, or its transpose when `flipped`, with the singular values of the core, fp64.

    `left` (short side, p) has orthonormal columns and `right` (q, long side) orthonormal rows; None is the identity.
    `sigma` is descending and as long as delta_W has information: below 1e-7 of the largest is the noise floor of the
    squared spectrum. One value is always kept.
    """

    def __init__(
        self, core: Tensor, left: Tensor | _Reflections | None = None, right: Tensor | None = None,
        flipped: bool = False, kernel: tuple[int, ...] = (), dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        values, vectors = torch.linalg.eigh(core @ core.T)
        self.sigma = values.flip(0).clamp(min=0).sqrt()[: min(core.shape)]
        self.sigma = self.sigma[: max(int((self.sigma > self.sigma[0] * 1e-7).sum()), 1)]
        self.vectors, self.core, self.left, self.right = vectors.flip(1), core, left, right
        self.flipped, self.kernel, self.dtype = flipped, kernel, dtype

    def rank_for(self, energy: float | None) -> int:
        """Return the fewest values whose squares make up that share of the sum; all of them for None."""
        return len(self.sigma) if energy is None else fewest(self.sigma, energy)

    def error(self, rank: int) -> float:
        """Relative Frobenius error of keeping `rank` values."""
        return cut_error(self.sigma, rank)

    def keep(self, rank: int, highest: float = inf) -> LowRank:
        """Return the correction with so many singular values, those above `highest` brought down to it."""
        rank = min(rank, len(self.sigma))
        vectors, root = self.vectors[:, :rank], self.sigma[:rank].sqrt()
        held = (highest / self.sigma[:rank]).clamp(max=1).sqrt() if highest < inf else torch.ones_like(root)
        short = vectors * (root * held) if self.left is None else self.left @ (vectors * (root * held))
        long = (vectors.T @ self.core) / root.clamp(min=torch.finfo(root.dtype).tiny)[:, None] * held[:, None]
        long = long if self.right is None else long @ self.right
        lora_A, lora_B = (short.T, long.T) if self.flipped else (long, short)
        lora_A, lora_B = (factor.contiguous().to(self.dtype) for factor in (lora_A, lora_B))
        return LowRank(lora_A, lora_B, float(rank), self.kernel)


def fewest(sigma: Tensor, energy: float) -> int:
    """Return the fewest singular values whose squares make up that share of the sum."""
    share = sigma.square().cumsum(0)
    return min(int((share < energy * share[-1]).sum()) + 1, len(sigma))


def cut_error(sigma: Tensor, rank: int) -> float:
    """Relative Frobenius error of keeping `rank` singular values."""
    return float(sigma[rank:].norm() / sigma.norm()) if sigma[0] else 0.0


class _Reflections:
    """The orthonormal columns of a QR factorisation as LAPACK leaves them: multiplying with them costs half of what
    writing them out does."""

    def __init__(self, vectors: Tensor, scales: Tensor):
        self.vectors, self.scales = vectors, scales

    def __matmul__(self, other: Tensor) -> Tensor:
        padded = other.new_zeros(len(self.vectors), other.shape[1])
        padded[: len(other)] = other
        return torch.ormqr(self.vectors, self.scales, padded)


def _core(up: Tensor, down: Tensor) -> tuple[_Reflections | None, Tensor]:
    """`up @ down = basis @ core` with orthonormal columns; no basis (None) where it would be as large as the core."""
    if up.shape[1] >= up.shape[0]:
        return None, up @ down
    vectors, scales = torch.geqrf(up)
    return _Reflections(vectors, scales), vectors[: up.shape[1]].triu() @ down


def _sums_exactly(weight: Tensor) -> bool:
    slow_or_narrow = weight.dtype.itemsize == 1 or (weight.dtype == torch.float16 and weight.device.type == "cpu")
    return weight.is_floating_point() and not slow_or_narrow


def _widened(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()
