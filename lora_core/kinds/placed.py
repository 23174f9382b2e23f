"""A correction of some rows of a taller weight, or of a weight whose rows the file has in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..low_rank import LowRank
from ..stored import stored
from .correction import Correction

Reorder = Callable[[Tensor], Tensor]


@stored("inner start length reorder", tag="Placed")
@dataclass(frozen=True, eq=False)
class Placed(Correction):
    """`inner` changes the rows `start : start + length` of a weight, after `reorder`, which undoes itself."""

    inner: Correction
    start: int
    length: int
    reorder: Reorder | None = None

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def depends_on_weight(self) -> bool:
        return self.inner.depends_on_weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def fits(self, weight: tuple[int, ...]) -> bool:
        return self.start + self.length <= weight[0] and self.inner.fits((self.length, *weight[1:]))

    def reach(self) -> tuple[float, float]:
        return self.inner.reach()

    def rows_of(self, weight: Tensor) -> Tensor:
        """Return the rows that `inner` changes, in its order."""
        rows = weight.narrow(0, self.start, self.length)
        return self.reorder(rows) if self.reorder else rows

    def put_back(self, layer: LowRank, height: int) -> LowRank:
        """Return a low-rank correction of those rows as one of the whole weight of `height` rows."""
        return (replace(layer, lora_B=self.reorder(layer.lora_B)) if self.reorder else layer).in_rows(
            self.start, height
        )

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        changed = self.inner.apply_to(self.rows_of(weight), strength)
        changed = self.reorder(changed) if self.reorder else changed
        return torch.cat([weight[: self.start], changed, weight[self.start + self.length :]])


def placed(inner: Correction, rows: tuple[int, int] | None, height: int, reorder: Reorder | None = None) -> Correction:
    """`inner` as a correction of the whole weight of `height` rows; itself when it is one already."""
    if rows is None and reorder is None:
        return inner
    return Placed(inner, *(rows or (0, height)), reorder)
