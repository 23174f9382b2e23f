"""One low-rank weight correction and its algebra.

`delta_W = (alpha / rank) * B @ A` (Hu et al. 2021, arXiv:2106.09685). A convolution is the same thing on its
flattened weight: `A` then has `in_channels * prod(kernel)` columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """`lora_A` (rank, in), `lora_B` (out, rank), `alpha`; `kernel` is the spatial shape of a convolution's weight."""

    lora_A: Tensor
    lora_B: Tensor
    alpha: float
    kernel: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        a, b = tuple(self.lora_A.shape), tuple(self.lora_B.shape)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
            raise ValueError(f"factors do not pair: A is {a}, B is {b}; expected (rank, in) and (out, rank)")
        if a[1] % prod(self.kernel):
            raise ValueError(f"A has {a[1]} columns, which kernel {self.kernel} does not divide")

    @classmethod
    def from_conv(cls, down: Tensor, up: Tensor, alpha: float, mid: Tensor | None = None) -> LowRank:
        """From a file's factors: `down` (rank, in[, *kernel]), `up` (out, rank[, 1...]).

        `mid` (rank_up, rank_down, *kernel) is a Tucker core between 1x1 factors; it is folded into A, which keeps
        `alpha / rank_down` as ComfyUI and LyCORIS scale it.
        """
        scaling, kernel = alpha / down.shape[0], tuple((down if mid is None else mid).shape[2:])
        if mid is not None:
            down = torch.einsum("ab...,bi->ai...", mid, down.flatten(1))
        return cls(down.flatten(1), up.flatten(1), scaling * down.shape[0], kernel)

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight this corrects: (out, in) or (out, in_channels, *kernel)."""
        return (self.lora_B.shape[0], self.lora_A.shape[1] // prod(self.kernel), *self.kernel)

    def num_parameters(self) -> int:
        return self.lora_A.numel() + self.lora_B.numel()

    def to(self, *args, **kwargs) -> LowRank:
        """As `Tensor.to`, on both factors."""
        return replace(self, lora_A=self.lora_A.to(*args, **kwargs), lora_B=self.lora_B.to(*args, **kwargs))

    def delta_weight(self) -> Tensor:
        """The dense correction, shaped like the weight, in the factors' dtype."""
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
        """The same correction of rows `start : start + out` of a taller fused weight with `total` rows."""
        rows = self.lora_B.new_zeros(total, self.rank)
        rows[start : start + self.lora_B.shape[0]] = self.lora_B
        return replace(self, lora_B=rows)

    def rows(self, start: int, length: int) -> LowRank:
        """The part of the correction that falls on `length` rows from `start`; B is a view."""
        return replace(self, lora_B=self.lora_B[start : start + length])

    @staticmethod
    def concat(items: Iterable[LowRank]) -> LowRank:
        """The exact sum of any ranks and alphas: factors side by side, scaling folded into B, alpha = rank.

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
        return float(LowRank.concat(pair)._core()[1].norm())

    def _core(self) -> tuple[Tensor, Tensor]:
        """`delta_W = Q @ C` in fp64: Q (out, k) orthonormal, C (k, in), k = min(out, rank)."""
        q, r = torch.linalg.qr(self.lora_B.double() * self.scaling)
        return q, r @ self.lora_A.double()

    def singular_values(self) -> Tensor:
        """All singular values of delta_W that its rank allows, descending, fp64."""
        core = self._core()[1]
        return _spectrum(core)[0][: min(core.shape)]

    def truncate(self, rank: int | None = None, energy: float | None = None) -> LowRank:
        """The nearest correction of lower rank (Eckart-Young), never through the dense matrix, never clamped.

        `rank` is the most that is kept; `energy` in (0, 1] keeps the fewest singular values whose squares make up
        that share of the sum. The result has alpha = rank and balanced factors (equal norms per component, kind to
        fp16). QR of B, then a symmetric eigenproblem of the small core, in fp64: exact to the factors' own dtype.
        """
        if rank is not None and rank < 1 or energy is not None and not 0 < energy <= 1:
            raise ValueError(f"cannot truncate to rank {rank}, energy {energy}: use rank >= 1 and 0 < energy <= 1")
        q, core = self._core()
        sigma, vectors = _spectrum(core)
        keep = min(rank or self.rank, _count_for_energy(sigma, energy), _numerical_rank(sigma))
        left, root = vectors[:, :keep], sigma[:keep].sqrt()
        lora_B = (q @ left) * root
        lora_A = (left.T @ core) / root.clamp(min=torch.finfo(root.dtype).tiny)[:, None]
        dtype = self.lora_A.dtype
        return LowRank(lora_A.to(dtype), lora_B.to(dtype), float(keep), self.kernel)


def _spectrum(core: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of `core` (descending) and its left singular vectors, from the Gram matrix of its rows."""
    values, vectors = torch.linalg.eigh(core @ core.T)
    return values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)


def _sums_exactly(weight: Tensor) -> bool:
    slow_or_narrow = weight.dtype.itemsize == 1 or (weight.dtype == torch.float16 and weight.device.type == "cpu")
    return weight.is_floating_point() and not slow_or_narrow


def _widened(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _count_for_energy(sigma: Tensor, energy: float | None) -> int:
    if energy is None:
        return len(sigma)
    share = sigma.square().cumsum(0)
    return min(int((share < energy * share[-1]).sum()) + 1, len(sigma))


def _numerical_rank(sigma: Tensor) -> int:
    """Components at the noise floor of the squared spectrum are not information; one is always kept."""
    return max(int((sigma > sigma[0] * 1e-7).sum()), 1)
