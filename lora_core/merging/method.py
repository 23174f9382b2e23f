"""Defines what is told of a merge method: one row of the table of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .task import Task


@dataclass(frozen=True)
class MergeMethod:
    """A merge method.

    `combine` makes the merged core of a `Task`. `density` is the share of entries that it keeps when nothing is said;
    None: it drops none. `by_chance`: it uses the task's generator. `only_two`: it is for two LoRAs and no more.
    """

    combine: Callable[[Task], Tensor]
    density: float | None = None
    by_chance: bool = False
    only_two: bool = False
