"""GLoRA: a low-rank correction, and one that is the weight itself times a low-rank matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor

from ..stored import stored
from .correction import Correction, Shapes, like, norm


@stored("a1 a2 b1 b2 scale", tag="GLoRA")
@dataclass(frozen=True, eq=False)
class GLoRA(Correction):
    """`delta_W = scale * (W @ a1 @ a2 + b1 @ b2)` (Chavan et al. 2023, arXiv:2306.07967, its parts A and B).

    `a1` (in, rank), `a2` (rank, in), `b1` (out, rank), `b2` (rank, in). Of a convolution, `a1 @ a2` acts on the input
    channels or, as wide as the flattened kernel, on that; `b2` is flattened. `scale` is alpha / rank.
    """

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    scale: float = 1.0

    kind = "GLoRA"
    depends_on_weight = True
    HAS_SCALE = True
    PARTS = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.b1.shape[0], self.b2.shape[1])

    def fits(self, weight: tuple[int, ...]) -> bool:
        return super().fits(weight) and self.a1.shape[0] in (weight[1], prod(weight[1:]))

    def difference(self, weight: Tensor) -> Tensor:
        a1, a2, b1, b2 = (like(factor, weight) for factor in (self.a1, self.a2, self.b1, self.b2))
        flat = weight.flatten(1) if len(a1) == weight[0].numel() else weight
        along = torch.einsum("oi...,ir,rj->oj...", flat, a1, a2)
        return self.scale * (along.reshape(weight.shape) + (b1 @ b2).reshape(weight.shape))

    def reach(self) -> tuple[float, float]:
        a1, a2, b1, b2 = map(norm, self.tensors())
        return abs(self.scale) * b1 * b2, abs(self.scale) * a1 * a2

    @classmethod
    def fault(cls, parts: Shapes) -> str:
        if missing := [part for part in cls.PARTS if part not in parts]:
            return f"{missing[0]} is missing"
        if bad := [part for part, shape in parts.items() if len(shape) < 2]:
            return f"{bad[0]} has shape {list(parts[bad[0]])}"
        flat = {part[:2]: (shape[0], prod(shape[1:])) for part, shape in parts.items()}
        if _order(flat) is None:
            return "ranks disagree: " + ", ".join(f"{part} {list(shape)}" for part, shape in flat.items())
        return ""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor], alpha: float | None) -> GLoRA:
        factors = {part[:2]: tensor.flatten(1) for part, tensor in parts.items()}
        order = _order({part: (t.shape[0], t.shape[1]) for part, t in factors.items()})
        a1, a2, b1, b2 = (factors[part] for part in cast(tuple[str, ...], order))  # there is one: `fault` has looked
        return cls(a1, a2, b1, b2, 1.0 if alpha is None else alpha / a2.shape[0])


def _order(flat: Mapping[str, tuple[int, int]]) -> tuple[str, str, str, str] | None:
    """Return which factors stand first: LyCORIS' early files have both pairs the other way round. None when neither
    fits.

    When both do, the weight is square, and the rank is the smaller of the two; ComfyUI takes equals for early ones.
    """
    found = []
    for order in (("a2", "a1", "b2", "b1"), ("a1", "a2", "b1", "b2")):
        a1, a2, b1, b2 = (flat[part] for part in order)
        if a1[1] == a2[0] == b1[1] == b2[0] and a1[0] == a2[1] and b2[1] % a1[0] == 0:
            found.append((a2[0], order))
    return min(found, key=lambda item: item[0])[1] if found else None
