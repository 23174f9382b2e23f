"""The table of `dev.py bench slider` in docs/figures.md, from what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import nan
from statistics import mean
from typing import Any

from benchmarks import _part
from benchmarks._publish import markdown
from benchmarks._tables import Line, spread

STORED = _part.stored("slider")
PAIRS, ORDINARY = "LoRA Slider of pictures", "ordinary LoRA of more"
KEPT = "a yellow ring, a striped square, a dotted circle on a blue background, a white hexagon, a cross"
OURS = {  # guidance, and what is preserved
    "LoRA Slider": (0.5, ""), "LoRA Slider, preserve": (0.5, KEPT), "LoRA Slider, guidance 0.2": (0.2, ""),
    "LoRA Slider, guidance 0.1": (0.1, ""),
}  # fmt: skip
ROWS = (*OURS, PAIRS, ORDINARY)
COLUMNS = {"range": 2, "within": 2, "even": 2, "symmetric": 2, "change": 1}
_LEAST = 0.1  # of the range, below which it has no shares


def figures(places: Sequence[float], ends: Sequence[float], moved: Sequence[float]) -> dict[str, float]:
    """Return the columns by what pictures come to at strengths -2, -1, 0, 1 and 2, by what they come to when the base
    is asked for less and for more, and by how far unrelated ones move."""
    steps, middle = [b - a for a, b in pairwise(places)], places[2]
    ways = [sorted((middle - places[-1 - at], places[at] - middle)) for at in (3, 4)]
    whole = places[-1] - places[0]
    share = whole / (ends[1] - ends[0])
    return {
        "range": share, "within": (places[3] - places[1]) / whole if share > _LEAST else nan,
        "even": max(min(steps), 0) / max(*steps, 1e-9),
        "symmetric": min(max(short, 0) / max(long, 1e-9) for short, long in ways), "change": mean(moved),
    }  # fmt: skip


def lines(found: Sequence[Mapping[str, Any]]) -> tuple[Line, list[Line]]:
    """Means, with the least and the most of the seeds."""
    made = []
    for name in dict.fromkeys(each["slider"] for each in found):
        for row in ROWS:
            own = [figures(**each["found"]) for each in found if (each["slider"], each["row"]) == (name, row)]
            if own:
                cells = (spread([each[column] for each in own], digits) for column, digits in COLUMNS.items())
                made.append((f"{name}, {row}", *cells, str(len(own))))
    return ("", *COLUMNS, "seeds"), made


def page() -> str:
    return _part.page("slider", "slider", markdown(*lines(_part.read(STORED))))
