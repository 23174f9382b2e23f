"""LoHa: the element-wise product of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..stored import stored
from .correction import Correction, Shapes, tucker_fault, tucker_shape


@stored("w1_a w1_b w2_a w2_b scale t1 t2", tag="LoHa")
@dataclass(frozen=True, eq=False)
class LoHa(Correction):
    """`delta_W = (alpha / rank) * (w1_a @ w1_b) * (w2_a @ w2_b)` (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098).

    `w?_a` (out, rank), `w?_b` (rank, in). With Tucker cores `t1`, `t2` (rank, rank, *kernel) the factors are
    `w?_a` (rank, out), `w?_b` (rank, in) and each side is `t x1 w_a x2 w_b`. `scale` is alpha / rank.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    scale: float = 1.0
    t1: Tensor | None = None
    t2: Tensor | None = None

    kind = "LoHa"
    HAS_SCALE = True
    PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")

    @property
    def shape(self) -> tuple[int, ...]:
        if self.t1 is not None:
            return tucker_shape(self.w1_a, self.w1_b, self.t1)
        return (self.w1_a.shape[0], self.w1_b.shape[1])

    def sides(self, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
        """Return each side as two matrices, (out, rank) and (rank, in with the kernel folded into it)."""
        sides = []
        for a, b, core in ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2)):
            a, b = a.to(dtype), b.to(dtype)
            if core is not None:
                a, b = a.T, torch.einsum("ij...,jr->ir...", core.to(dtype), b).flatten(1)
            sides.append((a, b))
        return sides

    def difference(self, weight: Tensor) -> Tensor:
        (p1, q1), (p2, q2) = self.to(weight.device).sides(weight.dtype)
        return (self.scale * p1 @ q1).mul_(p2 @ q2).reshape(weight.shape)

    @classmethod
    def fault(cls, parts: Shapes) -> str:
        if missing := [part for part in cls.PARTS[:4] if part not in parts]:
            return f"{missing[0]} is missing"
        if ("hada_t1" in parts) != ("hada_t2" in parts):
            return "only one of hada_t1 and hada_t2 is there"
        sides = [(parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], parts.get(f"hada_t{n}")) for n in "12"]
        if any(len(factor) != 2 for side in sides for factor in side[:2]):
            return "factors have 2 dimensions"
        for a, b, core in sides:
            if core is None and a[1] != b[0]:
                return f"ranks disagree: {list(a)}, {list(b)}"
            if core is not None and (problem := tucker_fault(a, b, core)):
                return problem
        outer = [(a[0], b[1]) if core is None else (a[1], b[1], *core[2:]) for a, b, core in sides]
        return "" if outer[0] == outer[1] else f"its sides are {list(outer[0])} and {list(outer[1])}"

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor], alpha: float | None) -> LoHa:
        w1_a, w1_b, w2_a, w2_b = (parts[part] for part in cls.PARTS[:4])
        scale = 1.0 if alpha is None else alpha / w1_b.shape[0]
        return cls(w1_a, w1_b, w2_a, w2_b, scale, parts.get("hada_t1"), parts.get("hada_t2"))

    def parts(self) -> tuple[dict[str, Tensor], float]:
        tensors = (self.w1_a, self.w1_b, self.w2_a, self.w2_b, self.t1, self.t2)
        held = {part: tensor for part, tensor in zip(self.PARTS, tensors, strict=True) if tensor is not None}
        return held, self.scale * self.w1_b.shape[0]

    def rows(self, start: int, length: int) -> LoHa:
        axis = 0 if self.t1 is None else 1
        w1_a, w2_a = (factor.narrow(axis, start, length) for factor in (self.w1_a, self.w2_a))
        return replace(self, w1_a=w1_a, w2_a=w2_a)
