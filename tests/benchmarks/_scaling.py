"""Predicts steps of data-parallel training on devices and links that nobody has measured here, from what a step counts.

`Card` and the links are assumptions, written down once; work and bytes are counted on the real shapes of the families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from benchmarks._simulator import Fleet, Jitter, Link, Step, on_fleet
from lora_loom.lora_core.training.meter import OperatorWork
from lora_loom.lora_core.training.plan import Rates

# Passes over the trained numbers after the sum: norm 1, clipping 2, AdamW 7, zeroing 1.
UPDATE_PASSES, BYTES = 11, 4
FORWARD = 0.25  # of a step that recomputes its blocks: the gradient comes in the rest of it
BUCKETS = 4
RANKS = (1, 2, 8, 64)


@dataclass(frozen=True)
class Card:
    """A device by what it reaches, not by its data sheet."""

    name: str
    rates: Rates


FAST = Card("fast", Rates(flops=400e12, moved=2.5e12, launch=5e-6, copied=25e9))
SLOWER = Card("slower", Rates(flops=80e12, moved=0.8e12, launch=5e-6, copied=12e9))
CARDS = (FAST, SLOWER)

_NVLINK, _PCIE = Link(5e-6, 200e9), Link(15e-6, 10e9)
_ETHERNET_25, _ETHERNET_100 = Link(40e-6, 2.8e9), Link(20e-6, 11e9)
FLEETS = {
    "NVLink": Fleet(8, _NVLINK, _ETHERNET_100),
    "PCIe": Fleet(8, _PCIE, _ETHERNET_100),
    "100 Gbit/s": Fleet(1, _ETHERNET_100, _ETHERNET_100),
    "25 Gbit/s": Fleet(1, _ETHERNET_25, _ETHERNET_25),
}


@dataclass(frozen=True, eq=False)
class Counted:
    """What was counted of a family at its real size: `layers` and trained `numbers` by targets at one rank, numbers of
    a latent, and the work of a forward and backward pass by how many pictures it has."""

    billions: float
    targets: str
    pixels: int
    layers: Mapping[str, int]
    numbers: Mapping[str, int]
    latent: int
    work: Mapping[int, OperatorWork]

    @classmethod
    def read(cls, entry: Mapping) -> Counted:
        work = {int(batch): OperatorWork(*each) for batch, each in entry["work"].items()}
        return cls(**{**entry, "work": work})

    @property
    def bytes(self) -> int:
        """Return the bytes of the gradient with the targets of the family's preset."""
        return BYTES * self.numbers[self.targets]

    def of(self, batch: int) -> OperatorWork:
        """Return the work of so many pictures in one pass; of more than were counted by the growth of the last ones."""
        if batch in self.work:
            return self.work[batch]
        *_, before, last = sorted(self.work)
        times = (batch - last) / (last - before)
        a, b = self.work[before], self.work[last]
        return OperatorWork(*(round(y + (y - x) * times) for x, y in zip(_parts(a), _parts(b), strict=True)))


def _parts(work: OperatorWork) -> Sequence[int]:
    return work.flops, work.moved, work.launches


def shares(batch: int, ranks: int) -> list[int]:
    """Return how many of the batch's pictures each rank has: as Train LoRA splits them."""
    return [batch * (rank + 1) // ranks - batch * rank // ranks for rank in range(ranks)]


def step_of(counted: Counted, card: Card, batch: int, ranks: int, draw: float, overlap: bool = False) -> Step:
    """A step of so many pictures on so many ranks; each draws the noise of all of them, at `draw` seconds a number."""
    drawn = draw * counted.latent * batch
    passed = {share: card.rates.seconds(counted.of(share)) for share in {*shares(batch, ranks)}}
    back = tuple(FORWARD + (1 - FORWARD) * (i + 1) / BUCKETS for i in range(BUCKETS))
    return Step(
        compute=tuple(drawn + passed[share] for share in shares(batch, ranks)),
        update=UPDATE_PASSES * counted.bytes / card.rates.moved,
        bytes=counted.bytes,
        ready=back if overlap else (1.0,),
    )


@dataclass(frozen=True)
class Prediction:
    """Predicts with this jitter and these seconds to draw a number of noise, both as measured."""

    jitter: Jitter
    draw: float

    def seconds(self, counted: Counted, card: Card, link: str, batch: int, ranks: int, overlap: bool = False) -> float:
        return _seconds(step_of(counted, card, batch, ranks, self.draw, overlap), FLEETS[link], self.jitter)

    def efficiency(self, counted: Counted, card: Card, link: str, share: int, ranks: int) -> float:
        """Return pictures a second of each of the ranks, over those of one rank by itself with as many."""
        alone = self.seconds(counted, card, link, share, 1)
        return alone / self.seconds(counted, card, link, share * ranks, ranks)

    def speedup(self, counted: Counted, card: Card, link: str, batch: int, ranks: int) -> float:
        """Return how many times faster a batch is on so many ranks than on one."""
        alone = self.seconds(counted, card, link, batch, 1)
        return alone / self.seconds(counted, card, link, batch, ranks)

    def overlapped(self, counted: Counted, card: Card, link: str, share: int, ranks: int) -> float:
        """Return the part of a step that overlapping the sum with the backward pass saves."""
        batch = share * ranks
        plain = self.seconds(counted, card, link, batch, ranks)
        return 1 - self.seconds(counted, card, link, batch, ranks, overlap=True) / plain

    def lost(self, counted: Counted, card: Card, link: str, share: int, ranks: int) -> tuple[float, float, float]:
        """Return the parts of a step that would not be there without drawing others' noise, without waiting for ranks
        that take longer, and without the sum."""
        batch = share * ranks
        step, fleet = step_of(counted, card, batch, ranks, self.draw), FLEETS[link]
        own = step_of(counted, card, batch, ranks, self.draw / ranks)
        whole = _seconds(step, fleet, self.jitter)
        changed = (own, self.jitter), (step, Jitter()), (replace(step, bytes=0.0), self.jitter)
        drawing, waiting, summing = (1 - _seconds(other, fleet, jitter) / whole for other, jitter in changed)
        return drawing, waiting, summing


@cache
def _seconds(step: Step, fleet: Fleet, jitter: Jitter) -> float:
    return on_fleet(step, fleet, jitter)
