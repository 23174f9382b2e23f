"""Whole differences and whole replacements: of weights, of norms, and of biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..stored import stored
from .correction import Correction, Shapes, like, norm


@stored("values", tag="Difference")
@dataclass(frozen=True, eq=False)
class Difference(Correction):
    """`W + strength * difference`: what a fine-tune changed, or an extraction could not factor."""

    values: Tensor

    kind = "full difference"
    TAKES_DORA = False
    PARTS = ("diff", "w_norm", "diff_b", "b_norm")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def fits(self, weight: tuple[int, ...]) -> bool:
        return self.shape == tuple(weight)

    def difference(self, weight: Tensor) -> Tensor:
        return like(self.values, weight)

    @classmethod
    def fault(cls, parts: Shapes) -> str:
        return "" if len(parts) == 1 else f"{' and '.join(parts)} change the same values"

    @classmethod
    def alpha_means(cls, parts: Iterable[str]) -> Literal["nothing"]:
        return "nothing"

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor], alpha: float | None) -> Difference:
        (values,) = parts.values()
        return cls(values)


@stored("values", tag="Replacement")
@dataclass(frozen=True, eq=False)
class Replacement(Difference):
    """`W = values`, whatever the strength; what was done to the weight before is lost, as in ComfyUI."""

    kind = "replacement"
    depends_on_weight = True
    PARTS = ("set_weight",)

    def difference(self, weight: Tensor) -> Tensor:
        return like(self.values, weight) - weight

    def reach(self) -> tuple[float, float]:
        return norm(self.values), 1.0

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        return like(self.values, weight).clone()
