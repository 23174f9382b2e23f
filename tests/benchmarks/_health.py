"""The table of `dev.py bench health` in docs/figures.md, from what is stored, so that no figure is copied by hand."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks import _part
from benchmarks._publish import markdown
from benchmarks._tables import Line, spread

STORED = _part.stored("health")
_COLUMNS = (
    ("distance", "distance", 2), ("loss", "held-out loss", 3), ("overlap", "overlap", 2), ("error", "error", 1),
    ("kin", "class", 1), ("change", "unrelated", 1),
)  # fmt: skip


def lines(path: Path) -> tuple[Line, list[Line]]:
    """Header and lines: by row, mean [least..most] over seeds of the mean over concepts."""
    found = _part.read(path)
    seeds, made = sorted({one["seed"] for one in found}), []
    for row in dict.fromkeys(one["row"] for one in found):
        own = [[one for one in found if (one["row"], one["seed"]) == (row, seed)] for seed in seeds]
        values = {name: [mean(one[name] for one in each) for each in own] for name, *_ in _COLUMNS}
        made.append((row, *(spread(values[name], digits) for name, _, digits in _COLUMNS)))
    return ("", *(title for _, title, _ in _COLUMNS)), made


def page() -> str:
    return _part.page("health", "health", markdown(*lines(STORED)))
