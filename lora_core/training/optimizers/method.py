"""Defines what is told of an optimiser: one row of the table of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer

from .matrices import OnMatrices


@dataclass(frozen=True)
class Method:
    """An optimiser.

    `title` is its name in metadata, which stays. `build` makes it of parameter groups, each with its `lr`, of a
    `weight_decay`, and of those of its own numbers that are not None. `state` are the numbers that it keeps for each
    that is trained, in units of fp32, at most. `rate` is the learning rate to start from, relative to AdamW's; None:
    it finds the rate by itself, and is given a factor on it, normally 1. `tip` is for the tooltip of the list.
    """

    title: str
    build: Callable[..., Optimizer]
    state: float
    rate: float | None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    tip: str = ""

    @property
    def on_matrices(self) -> bool:
        """Return whether it looks at matrices instead of single numbers."""
        return isinstance(self.build, type) and issubclass(self.build, OnMatrices)

    @property
    def averages(self) -> bool:
        """Return whether what is to be used are averages of its own, and a schedule or a second average would spoil
        them."""
        return hasattr(self.build, "averages")
