"""The table of `dev.py bench health` in docs/figures.md, from what is stored, so that no figure is copied by hand."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

from benchmarks._publish import FIGURES, markdown
from benchmarks._tables import Line, spread

STORED = Path(__file__).parent / "results" / "health.jsonl"
_MARKS = "<!-- health: written by `dev.py bench health --write` -->\n", "<!-- /health -->\n"
_COLUMNS = (
    ("distance", "distance", 2), ("loss", "held-out loss", 3), ("overlap", "overlap", 2), ("error", "error", 1),
    ("kin", "class", 1), ("change", "unrelated", 1),
)  # fmt: skip


def lines(path: Path) -> tuple[Line, list[Line]]:
    """Header and lines: by row, mean [least..most] over seeds of the mean over concepts."""
    found = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    seeds, made = sorted({one["seed"] for one in found}), []
    for row in dict.fromkeys(one["row"] for one in found):
        own = [[one for one in found if (one["row"], one["seed"]) == (row, seed)] for seed in seeds]
        values = {name: [mean(one[name] for one in each) for each in own] for name, *_ in _COLUMNS}
        made.append((row, *(spread(values[name], digits) for name, _, digits in _COLUMNS)))
    return ("", *(title for _, title, _ in _COLUMNS)), made


def page() -> str:
    """Return the whole text of docs/figures.md with the table of what is stored."""
    before, _, rest = FIGURES.read_text("utf-8").partition(_MARKS[0])
    return f"{before}{_MARKS[0]}\n{markdown(*lines(STORED))}\n\n{_MARKS[1]}{rest.partition(_MARKS[1])[2]}"


def publish() -> None:
    FIGURES.write_text(page(), encoding="utf-8", newline="\n")
