"""The table of `dev.py bench learn --joined`, which writes it into docs/figures.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks import _part
from benchmarks._publish import markdown
from benchmarks._tables import spread

STORED = _part.stored("joined")
PAIRS = (("heart", "arrow"), ("heart", "lined"))
BASE, EACH, APART, JOINED, LOUD, NATIVE = (
    "base", "ours, one run each", "ours, kept apart", "ours", "0.1.0", "ComfyUI",
)  # fmt: skip
ROWS = BASE, EACH, APART, JOINED, LOUD, NATIVE
COLUMNS = {
    "overlap": ("overlap", 2), "error": ("error", 1), "other": ("under the other's trigger", 2),
    "none": ("under none", 2), "kin": ("class", 1), "change": ("unrelated", 1),
    "told_other": ("told: other's", 2), "told_none": ("told: none", 2),
}  # fmt: skip


def lines(found: Sequence[Mapping[str, Any]], pair: Sequence[str]) -> tuple[Sequence[str], list[list[str]]]:
    """Return the table of a pair: means over both concepts, with the least and the most of the seeds."""
    rows = []
    for name in ROWS:
        runs = [each["figures"].values() for each in found if each["row"] == name and each["pair"] == list(pair)]
        cells = [
            spread([mean(own) for run in runs if (own := [f[key] for f in run if key in f])], digits)
            for key, (_, digits) in COLUMNS.items()
        ]
        rows.append([name, str(len(runs)) if name != BASE else "", *cells])
    return ("", "seeds", *(title for title, _ in COLUMNS.values())), rows


def page() -> str:
    return _part.page("learn --joined", "joined", section(_part.read(STORED)))


def section(found: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(f"*{' + '.join(pair)}*:\n\n{markdown(*lines(found, pair))}" for pair in PAIRS)
