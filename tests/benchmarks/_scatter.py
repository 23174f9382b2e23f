"""Draws docs/learning.svg: one mark for each row of the bench, what it learned beside what it leaked.

The colours can be read on white and on black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import NamedTuple

from benchmarks._results import BASE, DECODED, DEFAULT, DIRECTIONS, NATIVE, SAME_TIME, STATES, TRUE, Results
from benchmarks._tables import by_seed, rows_of

WIDTH, HEIGHT = 860, 480
LEFT, TOP, RIGHT, BOTTOM = 64, 20, 640, 424  # of the frame; labels may go on to its right
LINE, LETTER = 15, 7.5  # pixels: between two labels at least, and of a letter at most
INK, OURS, COMFYUI, PEERS = "#727a83", "#1f78dd", "#c75a10", "#8a5ff0"  # about 4.3 : 1 on white and on black
LEFT_OUT = BASE, DECODED, TRUE, DIRECTIONS + SAME_TIME, DEFAULT + STATES


class Mark(NamedTuple):
    row: str
    colour: str
    x: float
    y: float
    ends: tuple[float, float, float, float]  # least and most x, least and most y

    @property
    def start(self) -> float:
        """Where its label begins."""
        return max(self.x + 12, self.ends[1] + 5)


def drawn(results: Results, concepts: Sequence[str]) -> str:
    """The picture as SVG text."""
    rows = [row for row in rows_of(results, concepts) if row not in LEFT_OUT]
    found = {row: [by_seed(results, row, concepts, field) for field in ("change", "overlap")] for row in rows}
    most = max(max(change) for change, _ in found.values()) * 1.05
    low = min([min(overlap) for _, overlap in found.values()]) - 0.05
    high = max(max(overlap) for _, overlap in found.values()) + 0.05

    def x(change: float) -> float:
        return LEFT + (RIGHT - LEFT) * change / most

    def y(overlap: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (overlap - low) / (high - low)

    marks = [
        Mark(row, _colour(row), x(mean(c)), y(mean(o)), (x(min(c)), x(max(c)), y(min(o)), y(max(o))))
        for row, (c, o) in found.items()
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="14">',
        f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" stroke="{INK}" fill="none"/>',
        *_ticks(most, low, high),
        *(line for mark, place in _labelled(marks) for line in _mark(mark, place)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _colour(row: str) -> str:
    return COMFYUI if row.startswith(NATIVE) else OURS if row[:4] in ("ours", "0.1.") else PEERS


def _ticks(most: float, low: float, high: float) -> Iterator[str]:
    step = next(each for each in (0.5, 1, 2, 5, 10, 20) if most / each <= 8)
    for number in range(int(most / step) + 1):
        x = LEFT + (RIGHT - LEFT) * number * step / most
        yield f'<text x="{x:.0f}" y="{BOTTOM + 20}" text-anchor="middle" fill="{INK}">{number * step:g}</text>'
    for tenth in range(11):
        if low <= tenth / 10 <= high:
            y = BOTTOM - (BOTTOM - TOP) * (tenth / 10 - low) / (high - low)
            yield f'<text x="{LEFT - 8}" y="{y + 5:.0f}" text-anchor="end" fill="{INK}">{tenth / 10:g}</text>'
            yield f'<path d="M{LEFT - 4} {y:.0f}h4" stroke="{INK}"/>'
    middle = (TOP + BOTTOM) / 2
    yield (
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle" fill="{INK}">'
        "change of unrelated pictures, 0 to 255 (less is better)</text>"
    )
    yield (
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle" fill="{INK}">'
        "overlap with the truth (more is better)</text>"
    )


def _labelled(marks: Sequence[Mark]) -> Iterator[tuple[Mark, float]]:
    """Each with the height of its label: its own, or the nearest at which no mark and no other label is in the way."""
    taken = [(mark.x - 6, mark.x + 6, mark.y) for mark in marks]
    for mark in sorted(marks, key=lambda mark: mark.y):
        left, right = mark.start - 4, mark.start + 4 + LETTER * len(mark.row)
        ways = [y for start, end, y in taken if left < end and start < right]
        nearest = sorted(range(-HEIGHT, HEIGHT), key=abs)
        place = next(mark.y + n for n in nearest if all(abs(mark.y + n - y) >= LINE for y in ways))
        taken.append((left, right, place))
        yield mark, place


def _mark(mark: Mark, place: float) -> Iterator[str]:
    """A dot with the spread of its seeds, and its name."""
    left, right, bottom, top = mark.ends
    yield f'<path d="M{left:.1f} {mark.y:.1f}H{right:.1f}M{mark.x:.1f} {bottom:.1f}V{top:.1f}" stroke="{mark.colour}"/>'
    yield f'<circle cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="5" fill="{mark.colour}"/>'
    if place != mark.y:
        yield f'<path d="M{mark.x:.1f} {mark.y:.1f}L{mark.start - 2:.1f} {place:.1f}" stroke="{mark.colour}"/>'
    weight = ' font-weight="700"' if mark.row == DEFAULT else ""
    yield f'<text x="{mark.start:.1f}" y="{place + 5:.1f}" fill="{mark.colour}"{weight}>{mark.row}</text>'
