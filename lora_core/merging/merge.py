"""Many LoRAs to one, layer by layer, with the error of every layer and of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from math import sqrt
from typing import cast

import torch
from torch import Tensor

from ..low_rank import Decomposition, LowRank
from ..stack.weighted import Weighted, check_finite, numbered_terms
from . import METHODS, SUM
from .core_space import CoreSpace
from .pieces import Piece, Terms, pieces
from .task import Task, generator
from .truncation import Limits, shared_ranks

_SAMPLED = 48  # layers whose spectrum is looked at when nothing is cut
_ROUNDING = 1e-7  # of factors in fp32: what is left, relative to the terms, where they cancel
_LITTLE, _PROBES = 0.1, 4
NOTHING = "there is nothing to merge; connect adapters or a lora_stack with strengths other than 0"


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


EXACT, UNLIMITED = MergeSettings(), Limits()


@dataclass
class Merged:
    """Relative Frobenius errors of the cut by layer (`errors`, 1.0 where a layer went entirely) and of the whole
    (`error`). `departure` is the relative distance of the uncut method from the exact sum, over what more than one LoRA
    changes; `lone` counts the layers that hold nothing of that, which methods leave as they are.

    `spectra` are the singular values before the cut of all layers, or of some when nothing was cut, and `sums` those of
    the exact sum where a method changed them. `cancelled` are layers of which nothing is left but rounding; they are in
    `errors` but not in `layers`. `uncut` are the ranks of the layers when nothing is cut, `widths` out + in of each,
    `members` the index and the rank of each part that has a say in a layer. `spatial` are the layers that are
    convolutions which look at more than one place.
    """

    layers: dict[str, LowRank] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    error: float = 0.0
    departure: float = 0.0
    spectra: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    lone: int = 0
    cancelled: list[str] = field(default_factory=list)
    uncut: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    spatial: frozenset[str] = frozenset()
    members: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


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


def merge(
    parts: Sequence[Weighted],
    settings: MergeSettings = EXACT,
    limits: Limits = UNLIMITED,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """One layer after the other; `tick` hears how many are done, of how many, and may raise to cancel.

    Raises ValueError when there is nothing to merge, when a part holds other than plain LoRA or numbers that are not
    finite, when a method is for two LoRAs and there are more, when corrected weights differ in shape, or when the parts
    cancel in every layer.
    """
    terms = numbered_terms(parts)
    check_finite(parts)
    if not terms:
        raise ValueError(NOTHING)
    count = len({index for each in terms.values() for index, _ in each})
    if count > 2 and settings.method != SUM and METHODS[settings.method].only_two:
        raise ValueError(
            f"{settings.method} works with two LoRAs, but there are {count}; use karcher, or merge them one after "
            "another"
        )
    work = _Work(parts, {name: _acting(each) for name, each in terms.items()}, settings, limits, tick)
    merged = work.cut() if limits else work.whole()
    if not merged.layers:
        raise ValueError(
            f"the merge is empty: in all {len(terms)} layers the LoRAs cancel each other or the method drops "
            "everything; change the strengths or the method"
        )
    return merged


def _acting(each: Terms) -> Terms:
    """Without LoRAs that were never trained there, but for one where there is no other."""
    return [(index, term) for index, term in each if bool(term.lora_A.any()) and bool(term.lora_B.any())] or each[:1]


class _Work:
    def __init__(
        self, parts: Sequence[Weighted], terms: dict[str, Terms], settings: MergeSettings, limits: Limits,
        tick: Callable[[int, int], None],
    ):  # fmt: skip
        self.terms, self.settings, self.limits, self.tick = terms, settings, limits, tick
        self.parts, method = parts, settings.method != SUM
        self.pieces = {name: pieces(each) if method else [Piece(0, each)] for name, each in terms.items()}
        self.norms = _norms(len(parts), self.pieces.values()) if method else []
        self.done, self.total = 0, len(terms) * (2 if limits.megabytes else 1)
        self.merged = Merged(
            widths={name: _width(each[0][1]) for name, each in terms.items()},
            spatial=frozenset(name for name, each in terms.items() if each[0][1].is_spatial),
            members={name: [(index, term.rank) for index, term in each] for name, each in terms.items()},
        )
        self.kept, self.lost, self.moved, self.summed = 0.0, 0.0, 0.0, 0.0

    def whole(self) -> Merged:
        """Nothing is cut, and an exact sum not even decomposed but for a sample of spectra."""
        step = max(len(self.terms) // _SAMPLED, 1)
        for index, (name, target) in enumerate(self._targets()):
            self._count(name, target)
            low_rank = target.low_rank
            if low_rank is not None and low_rank.rank <= _room(low_rank) and not self._subtracts(name, low_rank):
                self.merged.layers[name], self.merged.uncut[name] = low_rank, low_rank.rank
                if index % step == 0:
                    self.merged.spectra[name] = low_rank.singular_values()
            else:
                parts = target.decomposed()
                self._keep(name, parts, len(parts.sigma))
        return self._finished()

    def cut(self) -> Merged:
        ranks = self._ranks_by_size() if self.limits.megabytes else {}
        for name, target in self._targets():
            self._count(name, target)
            parts = target.decomposed()
            self._keep(name, parts, ranks.get(name, self._most(name, parts)), target.low_rank)
        return self._finished()

    def _targets(self) -> Iterator[tuple[str, _Target]]:
        for name, each in self.terms.items():
            yield name, self._target(name, each)
            self.done += 1
            self._heed()

    def _heed(self) -> None:
        """A cancel, also inside a large layer."""
        self.tick(self.done, self.total)

    def _target(self, name: str, each: Terms) -> _Target:
        total, found = LowRank.concat(term for _, term in each), self.pieces[name]
        if self.settings.method == SUM or not any(map(_shared, found)):
            return _Target(total)
        if len(found) == 1:
            return self._combined(name, each)
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
        self._heed()
        strengths = [self.parts[index].strength_of(name or seeded_by) for index, _ in each]
        task = Task(
            space.cores, _room(terms[0]), torch.tensor(strengths, dtype=torch.float64),
            torch.tensor([self.norms[index] for index, _ in each], dtype=torch.float64),
            self.settings.kept or 1.0, generator(self.settings.seed, seeded_by),
        )  # fmt: skip
        plain = space.cores.sum(0)
        core = torch.lerp(plain, METHODS[self.settings.method].combine(task), self.settings.amount)
        self._heed()
        change, size = float((core - plain).square().sum()), float(plain.square().sum())
        return _Target(None, space.decompose(core), torch.linalg.svdvals(plain), change, size)

    def _ranks_by_size(self) -> dict[str, int]:
        spectra, most = {}, {}
        for name, target in self._targets():
            parts = target.decomposed()
            spectra[name], most[name] = parts.sigma, self._most(name, parts)
        return shared_ranks(spectra, self.merged.widths, self.limits, most)

    def _most(self, name: str, parts: Decomposition) -> int:
        return self.limits.most(parts.sigma, name in self.merged.spatial)

    def _count(self, name: str, target: _Target) -> None:
        self.merged.lone += not any(map(_shared, self.pieces[name]))
        self.moved += target.change
        self.summed += target.size
        if target.sum_spectrum is not None:
            self.merged.sums[name] = target.sum_spectrum

    def _keep(self, name: str, parts: Decomposition, rank: int, uncut: LowRank | None = None) -> None:
        """`uncut` is what stands for the layer when all of it is kept at no higher rank."""
        energy, size = float(parts.sigma.square().sum()), self._size(name)
        if size and energy <= (_ROUNDING * size) ** 2:
            self.merged.cancelled.append(name)
            self.merged.spectra[name] = parts.sigma[:0]
            return
        self.kept += energy
        self.lost += float(parts.sigma[rank:].square().sum())
        self.merged.spectra[name], self.merged.errors[name] = parts.sigma, parts.error(rank)
        self.merged.uncut[name] = uncut.rank if uncut is not None and uncut.rank <= _room(uncut) else len(parts.sigma)
        if rank:
            self.merged.layers[name] = uncut if uncut is not None and uncut.rank <= rank else parts.keep(rank)

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

    def _finished(self) -> Merged:
        self.merged.errors = {name: self.merged.errors.get(name, 0.0) for name in self.terms}
        self.merged.error = sqrt(self.lost / self.kept) if self.kept else 0.0
        self.merged.departure = sqrt(self.moved / self.summed) if self.summed else 0.0
        return self.merged


def _width(layer: LowRank) -> int:
    return layer.lora_A.shape[1] + layer.lora_B.shape[0]


def _room(layer: LowRank) -> int:
    """The most rank that a correction of that weight can have."""
    return min(layer.lora_B.shape[0], layer.lora_A.shape[1])


def _shared(piece: Piece) -> bool:
    return len(piece.terms) > 1


def _norms(count: int, layers: Iterable[Sequence[Piece]]) -> list[float]:
    """Return the norm of every part over what more than one part changes."""
    energies = [0.0] * count
    for piece in filter(_shared, chain.from_iterable(layers)):
        for index, term in piece.terms:
            energies[index] += term.inner(term)
    return [sqrt(max(energy, 0.0)) for energy in energies]
