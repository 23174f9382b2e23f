"""A correction of some rows of a taller weight, or of a weight whose rows the file has in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .correction import Correction


@dataclass(frozen=True, eq=False)
class Placed(Correction):
    """`inner` changes the rows `start : start + length` of a weight, after `reorder`, which undoes itself."""

    inner: Correction
    start: int
    length: int
    reorder: Callable[[Tensor], Tensor] | None = None

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

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        reorder = self.reorder or _as_is
        rows = reorder(weight.narrow(0, self.start, self.length))
        changed = reorder(self.inner.apply_to(rows, strength))
        return torch.cat([weight[: self.start], changed, weight[self.start + self.length :]])


def placed(inner: Correction, rows: tuple[int, int] | None, height: int, reorder=None) -> Correction:
    """`inner` as a correction of the whole weight of `height` rows; itself when it is one already."""
    if rows is None and reorder is None:
        return inner
    return Placed(inner, *(rows or (0, height)), reorder)


def _as_is(tensor: Tensor) -> Tensor:
    return tensor
