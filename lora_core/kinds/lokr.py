"""LoKr: the Kronecker product of a small and a larger matrix, either of them low-rank or whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..stored import stored
from .correction import Correction, Shapes, like, tucker_fault


@stored("w1 w2 scale", tag="LoKr")
@dataclass(frozen=True, eq=False)
class LoKr(Correction):
    """`delta_W = scale * kron(w1, w2)` (LyCORIS, Yeh et al. 2023, arXiv:2309.14859).

    `w1` is one matrix (a, b), or two whose product it is. `w2` is one (c, d[, *kernel]), two (c, rank), (rank, d), or
    with a Tucker core (rank, rank, *kernel) three: (rank, c), (rank, d), core. `scale` is alpha / rank of the last one
    that has a rank, w2 before w1, and 1 when both are whole.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float = 1.0

    kind = "LoKr"
    HAS_SCALE = True
    PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

    @property
    def shape(self) -> tuple[int, ...]:
        (a, b), (c, d, *kernel) = (outer_shape(*(factor.shape for factor in side)) for side in (self.w1, self.w2))
        return (a * c, b * d, *kernel)

    def difference(self, weight: Tensor) -> Tensor:
        w1, w2 = (product(*(like(factor, weight) for factor in side)) for side in (self.w1, self.w2))
        return torch.kron(self.scale * w1, w2.flatten(1)).reshape(weight.shape)

    @classmethod
    def fault(cls, parts: Shapes) -> str:
        for side in ("w1", "w2"):
            pair = [part in parts for part in (f"lokr_{side}_a", f"lokr_{side}_b")]
            if any(pair) and not all(pair) or any(pair) == (f"lokr_{side}" in parts):
                return f"lokr_{side} is one matrix or two, lokr_{side}_a and lokr_{side}_b"
        if "lokr_t2" in parts and "lokr_w2" in parts:
            return "lokr_t2 stands between lokr_w2_a and lokr_w2_b"
        if bad := [part for part, shape in parts.items() if len(shape) < 2 or len(shape) > 2 and part not in _DEEP]:
            return f"{bad[0]} has shape {list(parts[bad[0]])}"
        for side in ("w1", "w2"):
            a, b, core = (parts.get(part) for part in (f"lokr_{side}_a", f"lokr_{side}_b", "lokr_t2"))
            if a is None or b is None:
                continue
            if side == "w2" and core is not None:
                if problem := tucker_fault(a, b, core):
                    return problem
            elif a[1] != b[0]:
                return f"ranks disagree: {list(a)}, {list(b)}"
        return ""

    @classmethod
    def alpha_means(cls, parts: Iterable[str]) -> Literal["scale", "nothing"]:
        """Files with both matrices whole hold an alpha that means nothing, and may be infinite."""
        return "nothing" if {"lokr_w1", "lokr_w2"} <= set(parts) else "scale"

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor], alpha: float | None) -> LoKr:
        w1, w2 = (tuple(parts[part] for part in _side(side) if part in parts) for side in ("w1", "w2"))
        rank = _rank(w1, w2)
        return cls(w1, w2, alpha / rank if alpha is not None and rank else 1.0)

    def parts(self) -> tuple[dict[str, Tensor], float]:
        """The scale of two whole matrices goes into the smaller one: their alpha means nothing, but LyCORIS wants
        one."""
        rank, (first, *others) = _rank(self.w1, self.w2), self.w1
        w1 = self.w1 if rank or self.scale == 1 else (first * self.scale, *others)
        sides = (("lokr_w1", w1), ("lokr_w2", self.w2))
        held = {name: tensor for side, factors in sides for name, tensor in _named(side, factors)}
        return held, self.scale * rank if rank else 1.0

    def rows(self, start: int, length: int) -> LoKr | None:
        """Return whole rows of blocks; None where a block would be cut."""
        height = outer_shape(*(factor.shape for factor in self.w2))[0]
        if start % height or length % height:
            return None
        first, *others = self.w1
        return replace(self, w1=(first.narrow(0, start // height, length // height), *others))


def _rank(w1: tuple[Tensor, ...], w2: tuple[Tensor, ...]) -> int:
    """That of the larger side where it has one, else of the smaller; 0 where both are whole."""
    return next((len(side[1]) for side in (w2, w1) if len(side) > 1), 0)


def _named(side: str, factors: tuple[Tensor, ...]) -> Iterable[tuple[str, Tensor]]:
    names = (side,) if len(factors) == 1 else (f"{side}_a", f"{side}_b", "lokr_t2")
    return zip(names, factors, strict=False)


_DEEP = ("lokr_w2", "lokr_t2")


def _side(side: str) -> tuple[str, ...]:
    return (f"lokr_{side}", f"lokr_{side}_a", f"lokr_{side}_b", *(("lokr_t2",) if side == "w2" else ()))


def product(first: Tensor, second: Tensor | None = None, core: Tensor | None = None) -> Tensor:
    """Return one side of the Kronecker product as a matrix, kernels kept."""
    if second is None:
        return first
    return first @ second if core is None else torch.einsum("ij...,ip,jr->pr...", core, first, second)


def outer_shape(first: tuple, second: tuple = (), core: tuple = ()) -> tuple[int, ...]:
    """Return the shape of the matrix that `product` makes, from its factors' shapes."""
    if not second:
        return tuple(first)
    return (first[1], second[1], *core[2:]) if core else (first[0], second[1])
