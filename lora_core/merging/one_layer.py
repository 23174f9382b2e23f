"""Makes one layer of a merge. It depends on no other layer, so that ranks can share the layers out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import chain
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor

from ..low_rank import Decomposition, LowRank
from ..stack.weighted import Weighted
from . import METHODS, SUM
from .core_space import CoreSpace
from .pieces import Piece, Terms, pieces
from .settings import MergeSettings
from .task import Task, generator
from .truncation import Limits
from .wire import packed_layer, unpacked_layer

_ROUNDING = 1e-7  # of factors in fp32: what is left, relative to the terms, where they cancel
_LITTLE, _PROBES = 0.1, 4


@dataclass(frozen=True)
class Outcome:
    """`low_rank` is None where nothing is kept, and `plain` where it is the factors of the terms side by side. `sigma`
    are the singular values before the cut, where they are known, and `sums` those of the exact sum where a method
    changed them. `uncut` is the rank when nothing is cut, `error` that of the cut, relative, of what was decomposed.
    `kept` and `lost` are the squared norms of the layer and of what the cut takes, `change` and `size` those of the way
    from the exact sum and of that sum. `cancelled`: nothing is left but rounding.
    """

    low_rank: LowRank | None
    plain: bool = False
    sigma: Tensor | None = None
    sums: Tensor | None = None
    uncut: int = 0
    error: float | None = None
    kept: float = 0.0
    lost: float = 0.0
    change: float = 0.0
    size: float = 0.0
    cancelled: bool = False

    def packed(self) -> dict[str, Any]:
        """Return tensors and figures by name, without factors that every rank can put side by side itself."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**held, "low_rank": None if self.plain or self.low_rank is None else packed_layer(self.low_rank)}

    @classmethod
    def unpacked(cls, held: Mapping[str, Any], total: Callable[[], LowRank]) -> Outcome:
        """Return what was packed; `total` puts the terms side by side."""
        layer = held["low_rank"]
        return cls(**{**held, "low_rank": total() if held["plain"] else layer and unpacked_layer(layer)})


@dataclass(frozen=True)
class _Target:
    """A layer before the cut; `low_rank` where no decomposition was needed, `change` and `size` the squared distance
    from the exact sum and its squared norm."""

    low_rank: LowRank | None = None
    parts: Decomposition | None = None
    sum_spectrum: Tensor | None = None
    change: float = 0.0
    size: float = 0.0

    def all(self) -> LowRank:
        return self.low_rank or (parts := self.decomposed()).keep(len(parts.sigma))

    def decomposed(self) -> Decomposition:
        return self.parts or cast(LowRank, self.low_rank).decompose()  # one of the two is there


class Layers:
    """The layers of a merge, by name: what each is made of, and what becomes of it. `heed` is called within a large
    layer, and may raise to cancel."""

    def __init__(
        self, parts: Sequence[Weighted], terms: Mapping[str, Terms], settings: MergeSettings, heed: Callable[[], None]
    ):
        self.parts, self.settings, self.heed = parts, settings, heed
        self.terms = {name: _acting(each) for name, each in terms.items()}
        self.widths = {name: _width(each[0][1]) for name, each in self.terms.items()}
        self.spatial = frozenset(name for name, each in self.terms.items() if each[0][1].is_spatial)
        method = settings.method != SUM
        self.pieces = {name: pieces(each) if method else [Piece(0, each)] for name, each in self.terms.items()}
        self.norms = _norms(len(parts), self.pieces.values()) if method else []

    def lone(self, name: str) -> bool:
        """Return whether the layer holds nothing that more than one part changes."""
        return not any(map(_shared, self.pieces[name]))

    def total(self, name: str) -> LowRank:
        """Return the exact sum, factors side by side."""
        return LowRank.concat(term for _, term in self.terms[name])

    def cost(self, name: str) -> float:
        """Return about how long it takes, beside other layers."""
        terms = [term for _, term in self.terms[name]]
        return self.widths[name] * min(_room(terms[0]), sum(term.rank for term in terms)) ** 2

    def whole(self, name: str, sampled: bool) -> Outcome:
        """Return the layer uncut: an exact sum as it is, with its spectrum only if it is one of a sample."""
        target = self._target(name)
        low_rank = target.low_rank
        if low_rank is None or low_rank.rank > _room(low_rank) or self._subtracts(name, low_rank):
            return self._kept(name, target, lambda sigma: len(sigma))
        sigma = low_rank.singular_values() if sampled else None
        return Outcome(low_rank, plain=True, sigma=sigma, uncut=low_rank.rank, change=target.change, size=target.size)

    def cut(self, name: str, limits: Limits, rank: int | None = None) -> Outcome:
        """Return the layer cut to `rank`, or to what the limits let it have."""
        target = self._target(name)
        most = (lambda sigma: rank) if rank is not None else (lambda sigma: limits.most(sigma, name in self.spatial))
        return self._kept(name, target, most, target.low_rank)

    def spectrum(self, name: str) -> Tensor:
        """Return the singular values before a cut."""
        return self._target(name).decomposed().sigma

    def _target(self, name: str) -> _Target:
        total, found = self.total(name), self.pieces[name]
        if self.settings.method == SUM or self.lone(name):
            return _Target(total)
        if len(found) == 1:
            return self._combined(name, self.terms[name])
        made = [self._combined(f"{name} {piece.start}", piece.terms, name) for piece in found]
        height = total.lora_B.shape[0]
        whole = LowRank.concat(each.all().in_rows(piece.start, height) for each, piece in zip(made, found, strict=True))
        change, size = (sum(getattr(each, what) for each in made) for what in ("change", "size"))
        return _Target(None, whole.decompose(), total.singular_values(), change, size)

    def _combined(self, seeded_by: str, each: Terms, name: str = "") -> _Target:
        """Return what the method makes of corrections of the same rows of a layer."""
        terms = [term for _, term in each]
        if len(terms) == 1:
            return _Target(terms[0])
        space = CoreSpace.of(terms)
        self.heed()
        strengths = [self.parts[index].strength_of(name or seeded_by) for index, _ in each]
        task = Task(
            space.cores, _room(terms[0]), torch.tensor(strengths, dtype=torch.float64),
            torch.tensor([self.norms[index] for index, _ in each], dtype=torch.float64),
            self.settings.kept or 1.0, generator(self.settings.seed, seeded_by),
        )  # fmt: skip
        plain = space.cores.sum(0)
        core = torch.lerp(plain, METHODS[self.settings.method].combine(task), self.settings.amount)
        self.heed()
        change, size = float((core - plain).square().sum()), float(plain.square().sum())
        return _Target(None, space.decompose(core), torch.linalg.svdvals(plain), change, size)

    def _kept(self, name: str, target: _Target, most: Callable[[Tensor], int], uncut: LowRank | None = None) -> Outcome:
        """`uncut` is what stands for the layer when all of it is kept at no higher rank."""
        parts = target.decomposed()
        energy, size = float(parts.sigma.square().sum()), self._size(name)
        about = {"sums": target.sum_spectrum, "change": target.change, "size": target.size}
        if size and energy <= (_ROUNDING * size) ** 2:
            return Outcome(None, sigma=parts.sigma[:0], cancelled=True, **about)
        rank = most(parts.sigma)
        plain = uncut is not None and uncut.rank <= rank
        all_of_it = uncut.rank if uncut is not None and uncut.rank <= _room(uncut) else len(parts.sigma)
        return Outcome(
            (uncut if plain else parts.keep(rank)) if rank else None, plain=plain and rank > 0, sigma=parts.sigma,
            uncut=all_of_it, error=parts.error(rank), kept=energy, lost=float(parts.sigma[rank:].square().sum()),
            **about,
        )  # fmt: skip

    def _size(self, name: str) -> float:
        """Return the norm that the terms of a layer would have together if they had nothing in common."""
        return sqrt(sum(term.norm() ** 2 for _, term in self.terms[name]))

    def _subtracts(self, name: str, total: LowRank) -> bool:
        """Whether most of the terms is subtracted again, which factors side by side hold only in high precision. A few
        random inputs tell where that may be so."""
        terms = [term for _, term in self.terms[name]]
        if len(terms) < 2:
            return False
        inputs = torch.randn(terms[0].lora_A.shape[1], _PROBES, generator=torch.Generator().manual_seed(0))
        answers = [term.lora_B.float() @ (term.lora_A.float() @ inputs) * term.scaling for term in terms]
        each = sqrt(sum(float(answer.norm()) ** 2 for answer in answers))
        together = float(reduce(torch.add, answers).norm())
        return together < 2 * _LITTLE * each and total.norm() < _LITTLE * self._size(name)


def _width(layer: LowRank) -> int:
    return layer.lora_A.shape[1] + layer.lora_B.shape[0]


def _room(layer: LowRank) -> int:
    """The most rank that a correction of that weight can have."""
    return min(layer.lora_B.shape[0], layer.lora_A.shape[1])


def _acting(each: Terms) -> Terms:
    """Without LoRAs that were never trained there, but for one where there is no other."""
    return [(index, term) for index, term in each if bool(term.lora_A.any()) and bool(term.lora_B.any())] or each[:1]


def _shared(piece: Piece) -> bool:
    return len(piece.terms) > 1


def _norms(count: int, layers: Iterable[Sequence[Piece]]) -> list[float]:
    """Return the norm of every part over what more than one part changes."""
    energies = [0.0] * count
    for piece in filter(_shared, chain.from_iterable(layers)):
        for index, term in piece.terms:
            energies[index] += term.inner(term)
    return [sqrt(max(energy, 0.0)) for energy in energies]
