"""What several LoRAs do to each other in one sum, from their factors alone: no matrix of a weight's size is ever made.

With `G_B = B^T B` and `G_A = A A^T` of all factors side by side, strengths folded into B, every inner product of two
corrections is a sum over a block of `G_B * G_A` (entry by entry); a pair's shared subspace is the block of the whitened
Gram; the products of attention, such as `|dWq_i^T dWk_j|^2 = tr(C^T G_Aq C G_Ak)` with `C = Bq_i^T Bk_j`, need Grams of
the rows of one head. All of it in fp64, O((out + in) R^2) per layer for ranks that add up to R.

Each figure stands beside what unrelated LoRAs have by chance (`chance`). These are figures of risk: that two LoRAs work
in the same directions says where they may disturb each other. Whether they do, only pictures with one left out tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import NamedTuple
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks import REST, TEXT, block_of
from ..low_rank import LowRank
from ..merging.exact_sum import Weighted
from ..weak_memo import remembered
from . import chance
from .parts import Part, attentions, parts_of

Pairs = NDArray[np.float64]  # (LoRAs, LoRAs)
KINDS = {"Q-K": "qk", "O-V": "ov"}  # products in attention, and the roles of their two sides
EVERYWHERE = "all blocks"
_UNET = "IN MID OUT"  # its groups in the order of the network
_PIECE = 1024  # rows or columns at a time
_RANK_FLOOR = 1e-10  # of squared singular values, relative to the largest: what is below it is rounding


@dataclass(frozen=True)
class Excess:
    """How much of a squared quantity pairs hold, `held`, and the mean, variance and largest term of what unrelated
    LoRAs would; `most` is what they could hold at the most, or the base model's own."""

    held: Pairs
    expected: Pairs
    variance: Pairs
    peak: Pairs
    most: Pairs

    def __add__(self, other: Excess) -> Excess:
        """Of independent terms."""
        return Excess(
            self.held + other.held, self.expected + other.expected, self.variance + other.variance,
            np.maximum(self.peak, other.peak), self.most + other.most,
        )  # fmt: skip

    def share(self, i: int, j: int) -> float:
        return float(self.held[i, j] / self.most[i, j]) if self.most[i, j] else 0.0

    def times(self, i: int, j: int) -> float:
        """The multiple of chance; 1 where there is nothing to compare."""
        return float(self.held[i, j] / self.expected[i, j]) if self.expected[i, j] else 1.0

    def z(self, i: int, j: int) -> float:
        spread = self.variance[i, j] ** 0.5
        return float((self.held[i, j] - self.expected[i, j]) / spread) if spread else 0.0

    def terms(self, i: int, j: int) -> float:
        return float(self.expected[i, j] / self.peak[i, j]) if self.peak[i, j] else 1.0

    def found(self, i: int, j: int, comparisons: int) -> bool:
        """Whether it is more than chance, when this is one of so many comparisons."""
        return chance.excess_tail(self.times(i, j), self.terms(i, j)) * comparisons < chance.FALSE_ALARM


@dataclass(frozen=True)
class Block:
    """One block of the model, or all of it. `inner` holds the inner products, on its diagonal the squared norms;
    `variance` and `peak` are those of chance. `crossed` are the attention's cross terms by kind."""

    name: str
    inner: Pairs
    variance: Pairs
    peak: Pairs
    write: Excess
    read: Excess
    crossed: Mapping[str, Excess]

    def __add__(self, other: Block) -> Block:
        kinds = {*self.crossed, *other.crossed}
        crossed = {k: _added(self.crossed.get(k), other.crossed.get(k)) for k in sorted(kinds, reverse=True)}
        return Block(
            self.name, self.inner + other.inner, self.variance + other.variance, np.maximum(self.peak, other.peak),
            self.write + other.write, self.read + other.read, crossed,
        )  # fmt: skip

    def cos(self, i: int, j: int) -> float:
        """Of the two LoRAs' corrections here as one long vector each; 0 where one has none."""
        norms = (self.inner[i, i] * self.inner[j, j]) ** 0.5
        return float(self.inner[i, j] / norms) if norms else 0.0

    def z(self, i: int, j: int) -> float:
        return float(self.inner[i, j] / self.variance[i, j] ** 0.5) if self.variance[i, j] else 0.0

    def floor(self, i: int, j: int, comparisons: int) -> float:
        """The |cosine| beyond which it is no chance."""
        norms = (self.inner[i, i] * self.inner[j, j]) ** 0.5
        if not self.variance[i, j]:
            return 0.0
        return float(chance.cosine_floor(self._terms(i, j), comparisons) * self.variance[i, j] ** 0.5 / norms)

    def found(self, i: int, j: int, comparisons: int) -> bool:
        return chance.cosine_tail(self.z(i, j), self._terms(i, j)) * comparisons < chance.FALSE_ALARM

    def loudness(self, left_out: Sequence[int] = ()) -> float:
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
    blocks: tuple[Block, ...]
    layers: Mapping[str, tuple[float, float]]
    heads: tuple[Head, ...] = ()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(len(self.names)) for j in range(i + 1, len(self.names))]

    @cached_property
    def comparisons(self) -> int:
        return sum(3 + len(block.crossed) for block in (*self.blocks, self.total)) * len(self.pairs)

    @cached_property
    def total(self) -> Block:
        return replace(reduce(Block.__add__, self.blocks), name=EVERYWHERE)


@dataclass(frozen=True)
class Attention:
    """Of each attention (`parts.attentions`) the number of heads, and of each (attention, kind) the norm of the base
    model's own product in each head, where it is known."""

    heads: Mapping[str, int] = field(default_factory=dict)
    base: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """How the figures are made: on which device, with what call after every layer, and whether `brief`: inner products
    and norms alone, in fp32, without subspaces."""

    device: torch.device | str = "cpu"
    tick: Callable[[], object] = int
    brief: bool = False


def measure(parts: Sequence[Weighted], attention: Attention = Attention(), work: Work = Work()) -> Interference:
    """The figures of every pair and block. `parts` are in the model's layer names.

    Raises ValueError when nothing is switched on.
    """
    layers = {n: _Layer(parts, n, work) for n in dict.fromkeys(n for part in parts for n in part.adapter.layers)}
    layers = {name: layer for name, layer in layers.items() if layer.members}
    if not layers:
        raise ValueError("there is no plain LoRA weight at a strength other than 0, and nothing else can be measured")
    blocks: dict[str, Block] = {}
    sums = {}
    for name, layer in layers.items():
        block, sums[name] = layer.brief(str(block_of(name))) if work.brief else layer.figures(str(block_of(name)))
        _gather(blocks, block)
        work.tick()
    found: list[Head] = []
    for home, roles in attentions({name: layer.shape for name, layer in layers.items()}).items():
        for kind, ends in KINDS.items():
            left, right = (roles.get(role, ()) for role in ends)
            if home not in attention.heads or not left or not right:
                continue
            width = (left[0].columns if ends[0] == "o" else left[0].rows)[1] // attention.heads[home]
            sides = [[_Side(layers[part.layer], part, width) for part in end] for end in (left, right)]
            each, excess = _crossed(len(parts), home, kind, sides, attention)
            found += each
            _gather(blocks, _empty(str(block_of(left[0].layer)), len(parts), {kind: excess}))
            work.tick()
    ordered = tuple(blocks[name] for name in _in_order(layers))
    return Interference(tuple(part.name for part in parts), ordered, sums, tuple(found))


def _in_order(layers: Iterable[str]) -> list[str]:
    """Names of blocks: groups as they first come, those that are no blocks last, and numbers in order."""
    found = dict.fromkeys(map(block_of, layers))
    groups = list(dict.fromkeys(block.group for block in found))
    groups.sort(key=lambda group: (group in (REST, TEXT), _UNET.find(group)))
    return [str(b) for b in sorted(found, key=lambda block: (groups.index(block.group), block.number or 0))]


def _gather(blocks: dict[str, Block], block: Block) -> None:
    blocks[block.name] = blocks[block.name] + block if block.name in blocks else block


def _added(one: Excess | None, other: Excess | None) -> Excess:
    return one + other if one and other else one or other


def _empty(name: str, size: int, crossed: Mapping[str, Excess]) -> Block:
    nothing = _nothing(size)
    return Block(name, nothing.held, nothing.held, nothing.held, nothing, nothing, crossed)


def _nothing(size: int) -> Excess:
    return Excess(*np.zeros((5, size, size)))


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


class _Layer:
    """A layer as the LoRAs that change it see it: their corrections at the stack's strengths, `members` the index of
    each, and the place of its rank among all ranks side by side."""

    def __init__(self, parts: Sequence[Weighted], name: str, work: Work):
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

    @property
    def shape(self) -> tuple[int, int]:
        return self.corrections[0].lora_B.shape[0], self.corrections[0].lora_A.shape[1]

    def rows(self, start: int, length: int) -> Tensor:
        """Rows of all B side by side, scaling and strengths folded in, (length, R)."""
        pieces = [self._wide(each.lora_B[start : start + length]) * each.scaling for each in self.corrections]
        return torch.cat(pieces, 1)

    def columns(self, start: int, length: int) -> Tensor:
        """Columns of all A below each other, (R, length)."""
        return torch.cat([self._wide(each.lora_A[:, start : start + length]) for each in self.corrections])

    def _wide(self, factor: Tensor) -> Tensor:
        return factor.to(self.work.device, torch.float32 if self.work.brief else torch.float64)

    def brief(self, name: str) -> tuple[Block, tuple[float, float]]:
        """As `figures`, from those at strength 1, which are kept for as long as the corrections are."""
        kept = _at_one(self.plain[0])
        if [each() for each in kept.of] != self.plain:
            kept.of, kept.figures = [ref(each) for each in self.plain], self._unit_figures()
        by = np.outer(self.strengths, self.strengths)
        inner, variance, peak = map(
            self._spread, (unit * s for unit, s in zip(kept.figures, (by, by**2, by**2), strict=True))
        )
        nothing = _nothing(self.count)
        return Block(name, inner, variance, peak, nothing, nothing, {}), (max(float(inner.sum()), 0.0) ** 0.5, 0.0)

    def _unit_figures(self) -> list[Pairs]:
        """Inner products, variance and peak of the members alone."""
        scaled, self.corrections = self.corrections, self.plain
        block, _ = self.figures("")
        self.corrections, own = scaled, np.ix_(list(self.members), list(self.members))
        return [block.inner[own], block.variance[own], block.peak[own]]

    def figures(self, name: str) -> tuple[Block, tuple[float, float]]:
        """Of this layer alone, its parts (q, k, v of a fused weight) counted apart, for the block `name`; and the
        Frobenius and spectral norm of the sum."""
        parts = parts_of(self.name, self.shape)
        rows = {part.rows: _Gram.of(self.rows, part.rows, 1, self.spans) for part in parts}
        columns = {part.columns: _Gram.of(self.columns, part.columns, 0, self.spans) for part in parts}
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
        G, H = (sum(gram.all for gram in sides.values()) for sides in (rows, columns))
        total = max(float((G * H).sum()), 0.0) ** 0.5
        if self.work.brief:
            nothing = _nothing(self.count)
            return Block(name, inner, variance, peak, nothing, nothing, {}), (total, 0.0)
        write, read = (reduce(Excess.__add__, map(self._shared, sides.values())) for sides in (rows, columns))
        norms = total, _largest(_Gram(G, 0, [slice(None)]).roots()[0], H) ** 0.5
        return Block(name, inner, variance, peak, write, read, {}), norms

    def _shared(self, gram: _Gram) -> Excess:
        """Of the subspaces that the LoRAs span on this side."""
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
        return Excess(held, np.outer(ranks, ranks) / d, chances, there / d, np.minimum.outer(ranks, ranks))

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
        gram = sum((piece.T @ piece if dim else piece @ piece.T).double() for piece in pieces)
        return cls(gram.cpu(), span[1], spans)

    @cached_property
    def _spectra(self) -> list[tuple[Tensor, Tensor]]:
        return [tuple(torch.linalg.eigh(self.all[span, span])) for span in self.spans]

    def roots(self) -> list[Tensor]:
        """A root of each LoRA's own block."""
        return [vectors * values.clamp(min=0).sqrt() for values, vectors in self._spectra]

    def bases(self) -> list[Tensor]:
        """What makes the factors of each LoRA orthonormal, (rank, directions that it spans)."""
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


class _Side:
    """One side of a product of attention: `inner` (heads, R, width) is what the sides are multiplied over, head by
    head, and `outer` (R, R) the Gram matrix of the other factor."""

    def __init__(self, layer: _Layer, part: Part, width: int):
        B, A = layer.rows(*part.rows), layer.columns(*part.columns)
        inner, other = (A, B.T) if part.role == "o" else (B.T, A)
        self.outer, self.inner = other @ other.T, inner.unflatten(1, (-1, width)).transpose(0, 1)
        self.members = layer.members

    def of(self, index: int, heads: int) -> _Heads:
        """One LoRA's, in so many heads: keys and values that several queries share are repeated."""
        span = self.members[index]
        inner, outer = self.inner[:, span], self.outer[span, span]
        product = inner @ inner.mT @ outer
        norms, bound = product.diagonal(dim1=1, dim2=2).sum(-1), (product * product.mT).sum((1, 2)).clamp(min=0).sqrt()
        return _Heads(*(each.repeat_interleave(heads // len(inner), 0) for each in (inner, norms, bound)), outer)


class _Heads(NamedTuple):
    """`norms` (heads,) are squared, `bound` (heads,) is at least the largest squared singular value."""

    inner: Tensor
    norms: Tensor
    bound: Tensor
    outer: Tensor

    def times(self, other: _Heads) -> Tensor:
        """Held, expected, variance and peak of the product's squared norm, (4, heads)."""
        C, width = self.inner @ other.inner.mT, self.inner.shape[2]
        held = ((self.outer @ C) * (C @ other.outer)).sum((1, 2))
        peak = self.bound * other.bound / width
        return torch.stack([held, self.norms * other.norms / width, 2 * peak.square(), peak])


def _crossed(
    count: int, home: str, kind: str, sides: Sequence[Sequence[_Side]], attention: Attention
) -> tuple[list[Head], Excess]:
    """Each pair's cross term in each head, and all of them together. Streams that attend to each other add up."""
    heads, base = attention.heads[home], attention.base.get((home, kind), ())
    found, sums = [], np.zeros((5, count, count))
    for i in range(count):
        for j in range(i + 1, count):
            terms = [
                left.of(a, heads).times(right.of(b, heads))
                for a, b in ((i, j), (j, i)) for left in sides[0] for right in sides[1]
                if a in left.members and b in right.members
            ]  # fmt: skip
            if not terms:
                continue
            held, expected, variance, peak = torch.stack(terms).sum(0).cpu().numpy()
            for head in range(heads):
                times = held[head] / expected[head] if expected[head] else 1.0
                norm = max(float(held[head]), 0.0) ** 0.5
                found.append(Head(home, head, kind, (i, j), norm, float(times), base[head] if base else 0.0))
            every = held.sum(), expected.sum(), variance.sum(), peak.max(), sum(norm**2 for norm in base)
            sums[:, i, j] = sums[:, j, i] = every
    return found, Excess(*sums)
