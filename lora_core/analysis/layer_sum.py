"""One layer's LoRAs side by side: inner products, shared subspaces and the norms of their sum, from Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..fp64 import with_fp64
from ..low_rank import LowRank
from ..stack.weighted import Weighted
from ..weak_memo import remembered
from . import chance
from .figures import BlockFigures, OverlapExcess, Pairs
from .parts import parts_of

_PIECE = 1024  # rows or columns at a time
_RANK_FLOOR = 1e-10  # of squared singular values, relative to the largest: what is below it is rounding


@dataclass(frozen=True)
class FigureSettings:
    """Says how the figures are made: on which device, with what call after every layer, and whether `brief`: inner
    products and norms alone, in fp32, without subspaces. Figures that are not brief need fp64, and are made on the CPU
    where the device has none."""

    device: torch.device | str = "cpu"
    tick: Callable[[], object] = lambda: None
    brief: bool = False

    def wide(self, factor: Tensor) -> Tensor:
        """Return a factor where, and in the type in which, it is multiplied."""
        if self.brief:
            return factor.to(self.device, torch.float32)
        return factor.to(with_fp64(self.device)).double()


@dataclass
class _Kept:
    """Brief figures at strength 1, and the corrections that they are of."""

    of: list[ref[LowRank]] = field(default_factory=list)
    figures: list[Pairs] = field(default_factory=list)


@remembered
def _at_one(first: LowRank) -> _Kept:
    return _Kept()


@remembered
def _changes(layer: LowRank) -> bool:
    return bool(layer.lora_B.any())


class LayerTerms:
    """A layer as the LoRAs that change it see it: their corrections at the stack's strengths, `members` the index of
    each, and the place of its rank among all ranks side by side."""

    def __init__(self, parts: Sequence[Weighted], name: str, work: FigureSettings):
        self.name, self.count, self.work = name, len(parts), work
        found = ((i, part.adapter.layers.get(name), part.strength_of(name)) for i, part in enumerate(parts))
        used = [(i, layer, s) for i, layer, s in found if layer is not None and s and _changes(layer)]
        self.members: dict[int, slice] = {}
        self.plain, self.strengths = [layer for _, layer, _ in used], [s for *_, s in used]
        self.corrections = [layer.scaled(s) for _, layer, s in used]
        filled = 0
        for index, layer, _ in used:
            self.members[index], filled = slice(filled, filled + layer.rank), filled + layer.rank
        self.spans = list(self.members.values())
        self._grams: dict[tuple[int, tuple[int, int]], _Gram] = {}

    @property
    def shape(self) -> tuple[int, int]:
        return self.corrections[0].lora_B.shape[0], self.corrections[0].lora_A.shape[1]

    def rows(self, start: int, length: int) -> Tensor:
        """Return rows of all B side by side, scaling and strengths folded in, (length, R)."""
        pieces = [self.work.wide(each.lora_B[start : start + length]) * each.scaling for each in self.corrections]
        return torch.cat(pieces, 1)

    def columns(self, start: int, length: int) -> Tensor:
        """Columns of all A below each other, (R, length)."""
        return torch.cat([self.work.wide(each.lora_A[:, start : start + length]) for each in self.corrections])

    def gram_of_rows(self, span: tuple[int, int]) -> _Gram:
        """Return the Gram matrix of all B, from their rows `span` (start, length)."""
        return self._gram(self.rows, span, 1)

    def gram_of_columns(self, span: tuple[int, int]) -> _Gram:
        """Return the Gram matrix of all A, from their columns `span` (start, length)."""
        return self._gram(self.columns, span, 0)

    def _gram(self, read: Callable[[int, int], Tensor], span: tuple[int, int], dim: int) -> _Gram:
        """Worked out once, until `forget`."""
        if (dim, span) not in self._grams:
            self._grams[dim, span] = _Gram.of(read, span, dim, self.spans)
        return self._grams[dim, span]

    def forget(self) -> None:
        self._grams.clear()

    def brief(self, name: str) -> tuple[BlockFigures, tuple[float, float]]:
        """As `figures`, from those at strength 1, which are kept for as long as the corrections are."""
        kept = _at_one(self.plain[0])
        if [each() for each in kept.of] != self.plain:
            kept.of, kept.figures = [ref(each) for each in self.plain], self._unit_figures()
        by = np.outer(self.strengths, self.strengths)
        inner, variance, peak = map(
            self._spread, (unit * s for unit, s in zip(kept.figures, (by, by**2, by**2), strict=True))
        )
        nothing = OverlapExcess.nothing(self.count)
        block = BlockFigures(name, inner, variance, peak, write=nothing, read=nothing)
        return block, (max(float(inner.sum()), 0.0) ** 0.5, 0.0)

    def _unit_figures(self) -> list[Pairs]:
        """Inner products, variance and peak of the members alone."""
        scaled, self.corrections = self.corrections, self.plain
        block, _ = self.figures("")
        self.forget()
        self.corrections, own = scaled, np.ix_(list(self.members), list(self.members))
        return [block.inner[own], block.variance[own], block.peak[own]]

    def figures(self, name: str) -> tuple[BlockFigures, tuple[float, float]]:
        """Measure this layer alone, its parts (q, k, v of a fused weight) counted apart, for the block `name`. Return
        its figures, and the Frobenius and spectral norm of the sum."""
        parts = parts_of(self.name, self.shape)
        rows = {part.rows: self.gram_of_rows(part.rows) for part in parts}
        columns = {part.columns: self.gram_of_columns(part.columns) for part in parts}
        size = (self.count, self.count)
        inner, variance, peak = np.zeros(size), np.zeros(size), np.zeros(size)
        for part in parts:
            G, H = rows[part.rows], columns[part.columns]
            products = self._spread(_sums(G.all * H.all, self.spans))
            tops = np.zeros(self.count)
            tops[list(self.members)] = [
                _largest(root, H.all[span, span]) for root, span in zip(G.roots(), self.spans, strict=True)
            ]
            chances = np.outer(np.diag(products), np.diag(products)) / (G.width * H.width)
            inner, variance = inner + products, variance + chances
            peak = peak + np.outer(tops, tops) / (G.width * H.width)  # parts of a layer share factors: not independent
        G, H = (reduce(torch.add, (gram.all for gram in sides.values())) for sides in (rows, columns))
        total = max(float((G * H).sum()), 0.0) ** 0.5
        if self.work.brief:
            nothing = OverlapExcess.nothing(self.count)
            return BlockFigures(name, inner, variance, peak, write=nothing, read=nothing), (total, 0.0)
        write, read = (reduce(OverlapExcess.__add__, map(self._shared, sides.values())) for sides in (rows, columns))
        norms = total, _largest(_Gram(G, 0, [slice(None)]).roots()[0], H) ** 0.5
        return BlockFigures(name, inner, variance, peak, write=write, read=read), norms

    def _shared(self, gram: _Gram) -> OverlapExcess:
        """Measure how much the subspaces that the LoRAs span on this side have in common."""
        bases = gram.bases()
        ranks, spans = np.zeros(self.count), []
        for index, basis in zip(self.members, bases, strict=True):
            start = spans[-1].stop if spans else 0
            spans.append(slice(start, start + basis.shape[1]))
            ranks[index] = basis.shape[1]
        whole = torch.block_diag(*bases)
        held = self._spread(_sums((whole.T @ gram.all @ whole).square(), spans))
        d, there = gram.width, np.outer(ranks, ranks) > 0
        chances = np.array([[chance.overlap_variance(p, q, d) for q in ranks] for p in ranks])
        return OverlapExcess(held, np.outer(ranks, ranks) / d, chances, there / d, np.minimum.outer(ranks, ranks))

    def _spread(self, sums: NDArray) -> Pairs:
        """From the LoRAs that this layer has to all of them."""
        result, own = np.zeros((self.count, self.count)), list(self.members)
        result[np.ix_(own, own)] = sums
        return result


@dataclass(frozen=True)
class _Gram:
    """The Gram matrix of factors of `width` entries, all ranks side by side; `spans` are the LoRAs' own ranks."""

    all: Tensor
    width: int
    spans: Sequence[slice]

    @classmethod
    def of(cls, read: Callable[[int, int], Tensor], span: tuple[int, int], dim: int, spans: Sequence[slice]) -> _Gram:
        """Piece by piece: a piece in fp64 stays in the processor's cache. `dim` is that of the ranks."""
        pieces = (read(at, min(_PIECE, sum(span) - at)) for at in range(span[0], sum(span), _PIECE))
        grams = (piece.T @ piece if dim else piece @ piece.T for piece in pieces)
        gram = reduce(torch.add, (gram if gram.dtype == torch.float64 else gram.cpu().double() for gram in grams))
        return cls(gram.cpu(), span[1], spans)

    @cached_property
    def _spectra(self) -> list[tuple[Tensor, Tensor]]:
        return [tuple(torch.linalg.eigh(self.all[span, span])) for span in self.spans]

    def roots(self) -> list[Tensor]:
        """Return a root of each LoRA's own block."""
        return [vectors * values.clamp(min=0).sqrt() for values, vectors in self._spectra]

    def bases(self) -> list[Tensor]:
        """Return the matrices that make the factors of each LoRA orthonormal, (rank, directions that it spans)."""
        return [
            vectors[:, kept] / values[kept].sqrt()
            for values, vectors in self._spectra
            for kept in [values > values[-1].clamp(min=0) * _RANK_FLOOR]
        ]


def _largest(root: Tensor, gram: Tensor) -> float:
    """The largest squared singular value of `B A`: `root` is a root of B's Gram matrix, `gram` that of A."""
    return max(float(torch.linalg.eigvalsh(root.T @ gram @ root)[-1]), 0.0)


def _sums(values: Tensor, spans: Sequence[slice]) -> NDArray:
    """Sums over the blocks of pairs."""
    rows = torch.stack([values[span].sum(0) for span in spans])
    return torch.stack([rows[:, span].sum(1) for span in spans], 1).numpy()
