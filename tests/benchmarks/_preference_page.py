"""The table of `dev.py bench preference` in docs/figures.md, from what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import _part
from benchmarks._publish import markdown
from benchmarks._tables import Line, spread

STORED = _part.stored("preference")
BASE, LIKED, SWAPPED = "base", "the liked pictures alone", ", a quarter swapped"
BETAS: Mapping[str, float] = {LIKED: 0.0, **{f"pairs, beta {beta}": float(beta) for beta in (500, 2000, 8000)}}
ROWS = {name + swapped: (beta, bool(swapped)) for swapped in ("", SWAPPED) for name, beta in BETAS.items()}
COLUMNS = {"wins": ("win rate, %", 0), "size": ("size", 2), "clean": ("clean, %", 1), "liked": ("liked", 3)}


def lines(found: Sequence[Mapping[str, Any]]) -> tuple[Line, list[Line]]:
    """Means, with the least and the most of the seeds."""
    rows = []
    for name in (BASE, *ROWS):
        runs = [each["figures"] for each in found if each["row"] == name]
        if runs:
            cells = [spread([run[key] for run in runs], digits) for key, (_, digits) in COLUMNS.items()]
            rows.append((name, str(len(runs)) if name != BASE else "", *cells))
    return ("", "seeds", *(title for title, _ in COLUMNS.values())), rows


def page() -> str:
    return _part.page("preference", "preference", markdown(*lines(_part.read(STORED))))
