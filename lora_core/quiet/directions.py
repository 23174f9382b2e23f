"""Quiet directions: of a layer's inputs on neutral prompts, those that are loud, and a training that keeps out of them.

A layer's correction is trained as `B A~ P` and saved as `B A`, A = A~ P, an ordinary LoRA, where
`P = (I + C / (mu tau))^(-1/2)`, C the mean of `x x^T` over its inputs x on neutral prompts and tau its trace over its
width: what A does to such inputs costs A~ a long way. C is known by its largest eigenpairs and the mean of the rest. P
is scaled so that the mean square of its eigenvalues is 1: A is as large as A~, and a learning rate means as much as it
does without, however steep the eigenvalues of a base fall.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..fp64 import with_fp64
from ..nested_hash import bytes_of
from .sizes import is_dense


class UnfitError(ValueError):
    """Says why no directions can be had of these states."""


@dataclass(frozen=True, eq=False)
class Directions:
    """The largest eigenpairs of a C: orthonormal `vectors` (k, d) in fp16, `values` (k,) in fp32, falling, and `rest`,
    the mean of the other d - k eigenvalues."""

    vectors: Tensor
    values: Tensor
    rest: float

    @classmethod
    def of(cls, vectors: Tensor, values: Tensor, trace: float) -> Directions:
        """Make them of eigenpairs in any type, and the sum of all eigenvalues. Raises UnfitError when that is zero or
        anything is not finite."""
        count, width = vectors.shape
        finite = bool(values.isfinite().all() and vectors.isfinite().all()) and abs(trace) < float("inf")
        if not finite:
            raise UnfitError("the states on neutral prompts are not finite; load the model as bf16 or fp32")
        if not trace > 0:
            raise UnfitError("the states on neutral prompts are all zero, so they tell of no direction")
        values = values.to("cpu", torch.float32, copy=True).clamp_(min=0)
        rest = max(trace - float(values.double().sum()), 0.0) / (width - count) if count < width else 0.0
        return cls(vectors.to("cpu", torch.float16, copy=True).contiguous(), values, rest)

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def tau(self) -> float:
        """Return the mean of all eigenvalues."""
        count = len(self.values)
        return (float(self.values.double().sum()) + self.rest * (self.width - count)) / self.width

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of all that P is made of, 64 hex digits: part of what a run is known by."""
        found = hashlib.sha256(f"{list(self.vectors.shape)} {self.rest!r} ".encode())
        found.update(bytes_of(self.vectors))
        found.update(bytes_of(self.values))
        return found.hexdigest()

    def quieting(self, mu: float) -> Quieting:
        """Return P for a mu."""
        unit = mu * self.tau
        ways = (1 + self.values.double() / unit) ** -0.5
        scale = (1 + self.rest / unit) ** -0.5
        if len(ways) == self.width:  # nothing is left for it to scale: so that V, rounded, counts least
            scale = float(ways.median())
        squares = float(ways.square().sum()) + scale**2 * (self.width - len(ways))
        size = math.sqrt(squares / self.width)
        return Quieting(self.vectors, ((ways - scale) / size).float(), scale / size)


@dataclass(frozen=True, eq=False)
class Quieting:
    """P of one input: `P = scale I + V^T diag(gains) V`, symmetric whatever V is rounded to; V (k, d) is `vectors` in
    fp16, `gains` (k,) are fp32. Layers that share an input share one."""

    vectors: Tensor
    gains: Tensor
    scale: float

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def is_dense(self) -> bool:
        """Return whether P takes fewer products as a matrix than by its vectors."""
        return is_dense(self.width, len(self.gains))

    def to(self, device: torch.device | str) -> Quieting:
        return replace(self, vectors=self.vectors.to(device), gains=self.gains.to(device))

    def dense(self) -> Tensor:
        """Return P as a matrix (d, d), fp32, worked out in fp64."""
        device = with_fp64(self.vectors.device)
        vectors, gains = self.vectors.to(device, torch.float64), self.gains.to(device, torch.float64)
        found = (vectors.T * gains) @ vectors
        found.diagonal().add_(self.scale)
        return found.float().to(self.vectors.device)

    def apply(self, rows: Tensor) -> Tensor:
        """Return `rows P`, (n, d) in the type of the rows."""
        vectors = self.vectors.to(rows)
        return torch.addmm(rows, (rows @ vectors.T) * self.gains.to(rows), vectors, beta=self.scale)

    def inverse(self, rows: Tensor) -> Tensor:
        """Return `rows P^-1`, (n, d) fp32 on the rows' device; exact for vectors that are not quite orthonormal, and
        worked out in fp64 (the Woodbury identity)."""
        device = with_fp64(rows.device)
        vectors, gains = self.vectors.to(device, torch.float64), self.gains.to(device, torch.float64)
        wide = rows.to(device, torch.float64)
        inner = gains[:, None] * (vectors @ vectors.T)
        inner.diagonal().add_(self.scale)
        hidden = torch.linalg.solve(inner, wide @ vectors.T, left=False)
        return ((wide - (hidden * gains) @ vectors) / self.scale).to(rows.device, torch.float32)
