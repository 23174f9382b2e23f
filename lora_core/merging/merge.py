"""Many LoRAs to one, layer by layer, with the error of every layer and of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import TypeVar

from torch import Tensor

from ..low_rank import LowRank
from ..ranks.dealt import Tick, Wire, dealt
from ..ranks.group import ALONE, Group
from ..stack.weighted import Weighted, check_finite, numbered_terms
from . import METHODS, SUM
from .one_layer import Layers, Outcome
from .pieces import Terms
from .settings import MergeSettings
from .truncation import Limits, shared_ranks

Done = TypeVar("Done")
_SAMPLED = 48  # layers whose spectrum is looked at when nothing is cut
NOTHING = "there is nothing to merge; connect adapters or a lora_stack with strengths other than 0"
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


def merge(
    parts: Sequence[Weighted],
    settings: MergeSettings = EXACT,
    limits: Limits = UNLIMITED,
    tick: Tick = lambda done, total: None,
    group: Group = ALONE,
) -> Merged:
    """One layer after the other; `tick` hears how many are done, of how many, and may raise to cancel. The ranks of
    `group` share the layers out, and all have all of what comes of it.

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
    work = _Work(parts, terms, settings, tick, group)
    merged = _folded(work.layers, work.cut(limits) if limits else work.whole())
    if not merged.layers:
        raise ValueError(
            f"the merge is empty: in all {len(terms)} layers the LoRAs cancel each other or the method drops "
            "everything; change the strengths or the method"
        )
    return merged


class _Work:
    """All layers, once or twice over, dealt out to the ranks."""

    def __init__(
        self, parts: Sequence[Weighted], terms: Mapping[str, Terms], settings: MergeSettings, tick: Tick, group: Group
    ):
        self.tick, self.group, self.done, self.total = tick, group, 0, len(terms)
        self.layers = Layers(parts, terms, settings, lambda: tick(self.done, self.total))
        self.costs = {name: self.layers.cost(name) for name in self.layers.terms}

    def whole(self) -> dict[str, Outcome]:
        """Nothing is cut, and an exact sum not even decomposed but for a sample of spectra."""
        names = list(self.costs)
        sampled = set(names[:: max(len(names) // _SAMPLED, 1)])
        return self._dealt(lambda name: self.layers.whole(name, name in sampled), self._wire())

    def cut(self, limits: Limits) -> dict[str, Outcome]:
        ranks = self._ranks_by_size(limits) if limits.megabytes else {}
        return self._dealt(lambda name: self.layers.cut(name, limits, ranks.get(name)), self._wire(), bool(ranks))

    def _ranks_by_size(self, limits: Limits) -> dict[str, int]:
        spectra = self._dealt(self.layers.spectrum, Wire(lambda sigma: sigma, lambda name, sigma: sigma), more=True)
        most = {name: limits.most(sigma, name in self.layers.spatial) for name, sigma in spectra.items()}
        return shared_ranks(spectra, self.layers.widths, limits, most)

    def _wire(self) -> Wire[Outcome]:
        return Wire(Outcome.packed, lambda name, held: Outcome.unpacked(held, lambda: self.layers.total(name)))

    def _dealt(self, work: Callable[[str], Done], wire: Wire[Done], more: bool = False) -> dict[str, Done]:
        """`more`: this is one of two passes."""
        before = self.done

        def on(done: int, total: int) -> None:
            self.done, self.total = before + done, total * (2 if more else 1)
            self.tick(self.done, self.total)

        return dealt(self.group, self.costs, work, wire, on)


def _folded(layers: Layers, outcomes: Mapping[str, Outcome]) -> Merged:
    found = outcomes.values()
    kept, lost = sum(each.kept for each in found), sum(each.lost for each in found)
    change, size = sum(each.change for each in found), sum(each.size for each in found)
    return Merged(
        layers={name: each.low_rank for name, each in outcomes.items() if each.low_rank is not None},
        errors={name: each.error or 0.0 for name, each in outcomes.items()},
        error=sqrt(lost / kept) if kept else 0.0,
        departure=sqrt(change / size) if size else 0.0,
        spectra={name: each.sigma for name, each in outcomes.items() if each.sigma is not None},
        sums={name: each.sums for name, each in outcomes.items() if each.sums is not None},
        lone=sum(map(layers.lone, layers.terms)),
        cancelled=[name for name, each in outcomes.items() if each.cancelled],
        uncut={name: each.uncut for name, each in outcomes.items() if not each.cancelled},
        widths=layers.widths,
        spatial=layers.spatial,
        members={name: [(index, term.rank) for index, term in each] for name, each in layers.terms.items()},
    )
