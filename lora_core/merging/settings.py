"""Settings of a merge, which check themselves."""

from __future__ import annotations

from dataclasses import dataclass

from . import METHODS, SUM


@dataclass(frozen=True)
class MergeSettings:
    """`amount` goes from the exact sum (0) to the method (1); `density` (0: the method's own) and `seed` are for
    the methods that drop entries."""

    method: str = SUM
    density: float = 0.0
    amount: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method != SUM and self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; use one of {', '.join([SUM, *METHODS])}")
        if not 0 <= self.density <= 1 or not 0 <= self.amount <= 1:
            raise ValueError(f"density is {self.density:g} and amount is {self.amount:g}; both must be from 0 to 1")

    @property
    def kept(self) -> float | None:
        """Return the share of entries that the method keeps; None for those that drop none."""
        usual = METHODS[self.method].density if self.method in METHODS else None
        return usual and (self.density or usual)
