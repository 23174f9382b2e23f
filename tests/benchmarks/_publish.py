"""Writes what `dev.py bench learn` has stored into README, docs/figures.md and docs/learning.svg, so that no figure is
copied by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _part
from benchmarks._results import BEST, DEFAULT, LOUD, NATIVE, Results
from benchmarks._scatter import drawn
from benchmarks._tables import COLUMNS, Line, best_rates, by_concept, by_seed, costs, goals, means, with_best

ROOT = Path(__file__).resolve().parents[2]
STORED = _part.stored("learning")
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "learning.svg"
ROW = re.compile(r"^\| Learns, and leaks,.*\n", re.M)


def publish(results: Results) -> None:
    for path, text in pages(results).items():
        path.write_text(text, encoding="utf-8", newline="\n")


def pages(results: Results) -> dict[Path, str]:
    """Return the whole text of each page that has figures of the bench in it."""
    results, concepts = with_best(results), results.concepts()
    return {
        README: ROW.sub(lambda _: readme_row(results, concepts), README.read_text("utf-8")),
        _part.PAGE: _part.page("learn", "learning", section(results, concepts)),
        PICTURE: drawn(results, concepts),
    }


def readme_row(results: Results, concepts: Sequence[str]) -> str:
    """A row of the table of trainers: overlap with the truth, and change of unrelated pictures, both means."""

    def cell(row: str) -> str:
        overlap, change = (by_seed(results, row, concepts, field) for field in ("overlap", "change"))
        return f"{sum(overlap) / len(overlap):.2f}; {sum(change) / len(change):.1f}"

    said = "overlap with the truth, up to 1; change of unrelated pictures, 0 to 255"
    cells = (cell(DEFAULT), cell(NATIVE), *["not measured"] * 3)
    what = "Learns, and leaks, on the demo base with *quiet* ([measured](docs/figures.md#learning))"
    return f"| {what}: {said} | {' | '.join(cells)} |\n"


def section(results: Results, concepts: Sequence[str]) -> str:
    """The part of docs/figures.md between the marks."""
    titles = [column.title for column in COLUMNS]
    rates = ", ".join(f"{row.removeprefix(f'{NATIVE}, ')} for {one}" for one, row in best_rates(results).items())
    reached = [(g.text, g.wanted, g.reached, "yes" if g.met else "**no**") for g in goals(results, concepts)]
    parts = [
        verdict(results, concepts),
        "![How much of a concept is learned beside how far unrelated pictures move](learning.svg)",
        markdown(*means(results, concepts)),
        f"*{BEST}*, chosen for each concept by overlap: {rates.replace(NATIVE, 'its default')}.",
        "Goals that were set for the default before it was measured, and what was reached:",
        markdown(("", "wanted", "reached", "met"), reached),
        f"By concept, *{DEFAULT}* / *{LOUD}* / *{NATIVE}*:",
        markdown(("", *titles), by_concept(results, concepts, (DEFAULT, LOUD, NATIVE))),
        "What a run takes, with nothing kept of earlier ones; the median of its rounds:",
        markdown(*costs(results)),
    ]
    return "\n\n".join(parts)


def verdict(results: Results, concepts: Sequence[str]) -> str:
    """What the default learns and leaks beside the two that it is held against."""

    def of(row: str, field: str) -> float:
        found = by_seed(results, row, concepts, field)
        return sum(found) / len(found)

    def times(field: str, other: str) -> str:
        return f"{of(DEFAULT, field) / of(other, field):.2f}"

    ours, before, native = (f"{of(row, 'overlap'):.2f}" for row in (DEFAULT, LOUD, NATIVE))
    return (
        f"With the defaults of this base unrelated pictures change {times('change', NATIVE)} times as much as with"
        f" ComfyUI's own trainer and {times('change', LOUD)} times as much as with those of 0.1.0, pictures of the"
        f" class {times('kin', NATIVE)} and {times('kin', LOUD)} times. The overlap is {ours}, where 0.1.0 has {before}"
        f" and ComfyUI's trainer {native}; pictures of the concept are {times('error', LOUD)} times as far from the"
        " truth as with 0.1.0."
    )


def markdown(header: Line, lines: Sequence[Line]) -> str:
    rows = [header, ("---",) * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)
