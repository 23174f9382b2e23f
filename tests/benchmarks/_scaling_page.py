"""Writes the tables of docs/scaling.md from what `dev.py bench scaling` has stored: no figure is copied by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._calibration import checks, errors, jitter_of, shared_runs, typical
from benchmarks._commands import STORED as COMMANDS
from benchmarks._commands import commands
from benchmarks._publish import markdown
from benchmarks._scaling import BYTES, CARDS, FAST, FLEETS, RANKS, SLOWER, Card, Counted, Prediction
from lora_loom.lora_core.training.presets import StepsLaw

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).parent / "results" / "scaling.json"
PAGE = ROOT / "docs" / "scaling.md"
PART = re.compile(r"(<!-- (\w+): written by `dev.py bench scaling --write` -->\n).*?(<!-- /\2 -->\n)", re.S)
SEVERAL = RANKS[1:]
ENOUGH, SHARES = 0.9, (1, 2, 4, 8, 16)
MB = 1e6
Table = tuple[Sequence[str], list[Sequence[str]]]


@dataclass(frozen=True)
class Figures:
    """Holds what was stored. `drawn` is the count of numbers in one drawing of noise."""

    families: Mapping[str, Counted]
    gloo: Mapping[str, Any]
    prediction: Prediction

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Figures:
        first = next(iter(stored["gloo"].values()))
        families = {name: Counted.read(entry) for name, entry in stored["families"].items()}
        prediction = Prediction(jitter_of(first), typical(first["draw"]) / first["drawn"])
        return cls(families, stored["gloo"], prediction)

    @classmethod
    def stored(cls) -> Figures:
        return cls.read(json.loads(STORED.read_text("ascii")))


def publish(figures: Figures) -> None:
    PAGE.write_text(page(figures), encoding="utf-8", newline="\n")


def page(figures: Figures) -> str:
    """Return the whole text of the page with every table made anew."""
    parts = {name: make(figures) for name, make in PARTS.items()}
    return PART.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n\n{found[3]}", PAGE.read_text("utf-8"))


def sent(counted: Counted, ranks: int) -> float:
    """Return the bytes that a rank sends for a step, and receives: the least that a sum of all ranks' takes."""
    return 2 * (ranks - 1) / ranks * counted.bytes


def bytes_table(figures: Figures) -> Table:
    rows = []
    for name, counted in figures.families.items():
        sizes = [f"{BYTES * numbers / MB:.0f}" for numbers in counted.numbers.values()]
        by_ranks = [f"{sent(counted, ranks) / MB:.0f}" for ranks in SEVERAL]
        rows.append((name, f"{counted.billions:.2f}", counted.targets, *sizes, *by_ranks))
    targets = next(iter(figures.families.values())).numbers
    return ("", "billions of weights", "default targets", *targets, *(f"sent, {n} ranks" for n in SEVERAL)), rows


def efficiency_table(figures: Figures, card: Card, share: int, links: Sequence[str] = tuple(FLEETS)) -> Table:
    rows = []
    for name, counted in figures.families.items():
        alone = figures.prediction.seconds(counted, card, links[0], share, 1)
        cells = [
            percent(figures.prediction.efficiency(counted, card, link, share, ranks))
            for link in links
            for ranks in SEVERAL
        ]
        rows.append((name, f"{alone * 1e3:.0f}", *cells))
    return ("", "ms alone", *(f"{link}, {ranks}" for link in links for ranks in SEVERAL)), rows


def split_table(figures: Figures, batch: int = 8) -> Table:
    links, ranks = ("NVLink", "PCIe", "25 Gbit/s"), (2, 4, 8)
    rows = [
        (
            name,
            *(f"{figures.prediction.speedup(counted, FAST, link, batch, n):.1f}" for link in links for n in ranks),
        )
        for name, counted in figures.families.items()
    ]
    return ("", *(f"{link}, {n}" for link in links for n in ranks)), rows


def overlap_table(figures: Figures, ranks: int = 8) -> Table:
    shares = (1, 4)
    rows = [
        (
            name,
            *(
                percent(figures.prediction.overlapped(counted, FAST, link, share, ranks), 1)
                for share in shares
                for link in FLEETS
            ),
        )
        for name, counted in figures.families.items()
    ]
    return ("", *(f"{link}, {share} each" for share in shares for link in FLEETS)), rows


def lost_table(figures: Figures, ranks: int = 64) -> Table:
    rows = [
        (name, *(percent(part) for part in figures.prediction.lost(counted, FAST, "NVLink", 1, ranks)))
        for name, counted in figures.families.items()
    ]
    return ("", "drawing the others' noise", "waiting for the slowest", "the sum"), rows


def least_table(figures: Figures, ranks: int = 8) -> Table:
    """The fewest pictures of a rank with which ranks are worth what they cost."""
    rows = []
    for name, counted in figures.families.items():
        cells = []
        for link in FLEETS:
            enough = (
                share for share in SHARES if figures.prediction.efficiency(counted, FAST, link, share, ranks) >= ENOUGH
            )
            cells.append(str(next(enough, f"> {SHARES[-1]}")))
        rows.append((name, *cells))
    return ("", *FLEETS), rows


def steps_table(_: Figures) -> Table:
    """How much a run is shortened by a larger batch where its steps are chosen: by `StepsLaw`."""
    law, pictures, batches = StepsLaw(), (5, 10, 20, 30, 100), (1, 2, 4, 8, 16, 64)
    rows = []
    for count in pictures:
        steps = {batch: law.of(count, batch) for batch in batches}
        rows.append((str(count), *(f"{steps[batch]} ({steps[1] / steps[batch]:.3g} x)" for batch in batches)))
    return ("pictures", *(f"batch {batch}" for batch in batches)), rows


def percent(part: float, digits: int = 0) -> str:
    return f"{100 * part:.{digits}f} %"


def check_tables(figures: Figures) -> Iterator[str]:
    for name, found in figures.gloo.items():
        worst = max(map(abs, errors(found)))
        yield (
            f"A small SD 1.5 of {name}, rank {found['rank']}: {4 * found['numbers'] / MB:.1f} MB of gradient. The"
            f" largest error of a step is {percent(worst)}."
        )
        yield markdown(*checks(found))


def run_tables(figures: Figures) -> Iterator[str]:
    for name, found in figures.gloo.items():
        yield f"A small SD 1.5 of {name}, rank {found['rank']}, batch {found['batch']}:"
        yield markdown(*shared_runs(found))


PARTS = {
    "bytes": lambda figures: markdown(*bytes_table(figures)),
    "one": lambda figures: markdown(*efficiency_table(figures, FAST, 1)),
    "four": lambda figures: markdown(*efficiency_table(figures, FAST, 4)),
    "slower": lambda figures: markdown(*efficiency_table(figures, SLOWER, 1, ("PCIe", "25 Gbit/s"))),
    "split": lambda figures: markdown(*split_table(figures)),
    "lost": lambda figures: markdown(*lost_table(figures)),
    "overlap": lambda figures: markdown(*overlap_table(figures)),
    "least": lambda figures: markdown(*least_table(figures)),
    "steps": lambda figures: markdown(*steps_table(figures)),
    "checks": lambda figures: "\n\n".join(check_tables(figures)),
    "runs": lambda figures: "\n\n".join(run_tables(figures)),
    "commands": lambda _: markdown(*commands(json.loads(COMMANDS.read_text("ascii")))),
    "assumed": lambda _: markdown(*assumed_table()),
}


def assumed_table() -> Table:
    cards = [
        (
            f"{card.name} card",
            f"{card.rates.flops / 1e12:.0f} TFLOP/s in bf16, {card.rates.moved / 1e9:.0f} GB/s of its memory,"
            f" {card.rates.launch * 1e6:.0f} us an operator",
        )
        for card in CARDS
    ]
    links = [
        (
            name,
            f"{fleet.inside.latency * 1e6:.0f} us a message, {fleet.inside.bandwidth / 1e9:.3g} GB/s each way; "
            + ("one card a machine" if fleet.each == 1 else f"{fleet.each} cards a machine, machines at 100 Gbit/s"),
        )
        for name, fleet in FLEETS.items()
    ]
    return ("", "assumed"), [*cards, *links]
