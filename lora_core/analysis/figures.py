"""Figures of what LoRAs share, by pair and block, each beside what unrelated LoRAs have by chance (`chance`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from . import chance

Pairs = NDArray[np.float64]  # (LoRAs, LoRAs)
EVERYWHERE = "all blocks"


@dataclass(frozen=True)
class OverlapExcess:
    """Says how much of a squared quantity pairs hold, `held`, and the mean, variance and largest term of what unrelated
    LoRAs would; `most` is what they could hold at the most, or the base model's own."""

    held: Pairs
    expected: Pairs
    variance: Pairs
    peak: Pairs
    most: Pairs

    @classmethod
    def nothing(cls, count: int) -> OverlapExcess:
        """Return the figures of `count` LoRAs that do not meet: all zeros."""
        return cls(*np.zeros((5, count, count)))

    def __add__(self, other: OverlapExcess) -> OverlapExcess:
        """Add the figures of independent terms; `peak` is the larger of the two."""
        return OverlapExcess(
            self.held + other.held, self.expected + other.expected, self.variance + other.variance,
            np.maximum(self.peak, other.peak), self.most + other.most,
        )  # fmt: skip

    def share(self, i: int, j: int) -> float:
        return float(self.held[i, j] / self.most[i, j]) if self.most[i, j] else 0.0

    def times(self, i: int, j: int) -> float:
        """Return the multiple of chance; 1 where there is nothing to compare."""
        return float(self.held[i, j] / self.expected[i, j]) if self.expected[i, j] else 1.0

    def z(self, i: int, j: int) -> float:
        spread = self.variance[i, j] ** 0.5
        return float((self.held[i, j] - self.expected[i, j]) / spread) if spread else 0.0

    def terms(self, i: int, j: int) -> float:
        return float(self.expected[i, j] / self.peak[i, j]) if self.peak[i, j] else 1.0

    def found(self, i: int, j: int, comparisons: int) -> bool:
        """Return whether it is more than chance, when this is one of so many comparisons."""
        return chance.excess_tail(self.times(i, j), self.terms(i, j)) * comparisons < chance.FALSE_ALARM


@dataclass(frozen=True)
class BlockFigures:
    """One block of the model, or all of it. `inner` holds the inner products, on its diagonal the squared norms;
    `variance` and `peak` are those of chance. `crossed` are the attention's cross terms by kind."""

    name: str
    inner: Pairs
    variance: Pairs
    peak: Pairs
    write: OverlapExcess
    read: OverlapExcess
    crossed: Mapping[str, OverlapExcess] = field(default_factory=dict)

    def __add__(self, other: BlockFigures) -> BlockFigures:
        kinds = {*self.crossed, *other.crossed}
        pairs = {k: filter(None, (self.crossed.get(k), other.crossed.get(k))) for k in sorted(kinds, reverse=True)}
        crossed = {k: reduce(OverlapExcess.__add__, pair) for k, pair in pairs.items()}
        return BlockFigures(
            self.name,
            inner=self.inner + other.inner,
            variance=self.variance + other.variance,
            peak=np.maximum(self.peak, other.peak),
            write=self.write + other.write,
            read=self.read + other.read,
            crossed=crossed,
        )

    def cos(self, i: int, j: int) -> float:
        """Return the cosine of the two LoRAs' corrections here, each as one long vector; 0 where one has none."""
        norms = (self.inner[i, i] * self.inner[j, j]) ** 0.5
        return float(self.inner[i, j] / norms) if norms else 0.0

    def z(self, i: int, j: int) -> float:
        return float(self.inner[i, j] / self.variance[i, j] ** 0.5) if self.variance[i, j] else 0.0

    def floor(self, i: int, j: int, comparisons: int) -> float:
        """Return the |cosine| beyond which it is no chance."""
        norms = (self.inner[i, i] * self.inner[j, j]) ** 0.5
        if not self.variance[i, j]:
            return 0.0
        return float(chance.cosine_floor(self._terms(i, j), comparisons) * self.variance[i, j] ** 0.5 / norms)

    def found(self, i: int, j: int, comparisons: int) -> bool:
        return chance.cosine_tail(self.z(i, j), self._terms(i, j)) * comparisons < chance.FALSE_ALARM

    def loudness(self, left_out: Collection[int] = ()) -> float:
        """Frobenius norm of the sum, without those left out."""
        kept = [i for i in range(len(self.inner)) if i not in left_out]
        return max(float(self.inner[np.ix_(kept, kept)].sum()), 0.0) ** 0.5

    def norms(self) -> list[float]:
        return [max(float(value), 0.0) ** 0.5 for value in np.diag(self.inner)]

    def _terms(self, i: int, j: int) -> float:
        return float(self.variance[i, j] / self.peak[i, j]) if self.peak[i, j] else 1.0


@dataclass(frozen=True)
class Head:
    """A cross term of one pair in one head: `kind` is Q-K or O-V; `norm` is sqrt(|ij|^2 + |ji|^2), `times` its square
    as a multiple of chance, and `base` the norm of the base model's own product, 0 when that is not known."""

    attention: str
    head: int
    kind: str
    pair: tuple[int, int]
    norm: float
    times: float
    base: float


@dataclass(frozen=True)
class Interference:
    """`layers` tells of each layer's sum its Frobenius and spectral norm."""

    names: tuple[str, ...]
    blocks: tuple[BlockFigures, ...]
    layers: Mapping[str, tuple[float, float]]
    heads: tuple[Head, ...] = ()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(len(self.names)) for j in range(i + 1, len(self.names))]

    @cached_property
    def comparisons(self) -> int:
        return sum(3 + len(block.crossed) for block in (*self.blocks, self.total)) * len(self.pairs)

    @cached_property
    def total(self) -> BlockFigures:
        return replace(reduce(BlockFigures.__add__, self.blocks), name=EVERYWHERE)
