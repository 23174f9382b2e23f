"""Interference as a picture: a row for each block, a column for each pair, one panel for each figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import log
from typing import NamedTuple

from PIL import Image, ImageDraw

from ..drawing import letters
from ..drawing.letters import Font
from ..families.blocks import block_of
from .figures import EVERYWHERE, BlockFigures, Interference, OverlapExcess
from .findings import Norms, floors, letter

Colour = tuple[int, int, int]
_PAPER, _TEXT, _FAINT, _BAR = "#1b1b1f", "#e6e6ee", "#a8a8b4", "#7f93a8"
_QUIET: Colour = (43, 43, 49)
_AGAINST, _ALIKE = (86, 180, 233), (230, 120, 20)  # blue and orange, which every eye tells apart
_SHARED = ((72, 40, 120), (38, 130, 142), (253, 231, 37))  # viridis: it grows in brightness
_LEFT, _TOP, _ROW, _GAP, _LINE, _LEGEND = 14, 78, 20, 28, 18, 110


class Cell(NamedTuple):
    """`strength` is where a value stands between its noise floor, 0, and the most there can be, 1; -1 is the most that
    two can pull against each other."""

    strength: float
    text: str


_SILENT = Cell(0.0, "")


@dataclass(frozen=True)
class Panel:
    """`cell` gives None where a pair does not meet; `ends` are the words at the ends of the scale."""

    title: str
    cell: Callable[[BlockFigures, int, int], Cell | None]
    ends: tuple[str, str] = ("chance", "all")

    @property
    def two_sided(self) -> bool:
        return self.ends[0] != "chance"


def heat_map(found: Interference, base: Norms | None = None) -> Image.Image:
    """Return every figure by block and pair, and how loud each block's sum is beside the base model's weights.

    What is within chance is dark, whatever its value.
    """
    rows = [*found.blocks, found.total]
    labels = [block.name for block in rows]
    tops = [_TOP + _ROW * row + (8 if row == len(found.blocks) else 0) for row in range(len(rows))]
    title, small = letters.font(15), letters.font(12)
    shown, loud = panels(found) if found.pairs else [], loudness(found, base or {})
    column = 54 if len(found.pairs) <= 6 else 36 if len(found.pairs) <= 15 else 16
    wide = max([column * len(found.pairs), *(int(small.getlength(panel.title)) for panel in shown)])
    left = _LEFT + 14 + int(max(small.getlength(label) for label in labels))
    page, pen = _page(
        left + len(shown) * (wide + _GAP) + (170 if loud else 0), tops[-1] + 90 + _LINE * len(found.names)
    )
    pen.text((_LEFT, 12), "Interference: overlap of each pair of LoRAs, beyond chance", _TEXT, title)
    for top, label in zip(tops, labels, strict=True):
        pen.text((_LEFT, top + 3), label, _TEXT if top == tops[-1] else _FAINT, small)
    for number, panel in enumerate(shown):
        x = left + number * (wide + _GAP)
        pen.text((x, 40), panel.title, _TEXT, small)
        for at, pair in enumerate(found.pairs):
            if column > 16:
                pen.text((x + column * (at + 0.5), 68), "".join(map(letter, pair)), _FAINT, small, "mm")
            for top, block in zip(tops, rows, strict=True):
                _draw(pen, (x + column * at, top, column), panel.cell(block, *pair), panel, small)
        _legend(pen, x, tops[-1] + _ROW + 12, panel, small)
    _bars(pen, left + len(shown) * (wide + _GAP), zip(tops, labels, strict=True), loud, small)
    for number, (line, colour) in enumerate(_notes(found)):
        pen.text((_LEFT, tops[-1] + _ROW + 50 + _LINE * number), line, colour, small)
    return page


def _page(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (max(width, 640), height + _LINE), _PAPER)
    return page, letters.pen(page)


def _notes(found: Interference) -> list[tuple[str, str]]:
    note = "dark cells: no more than chance (unrelated LoRAs give an all-dark picture in 99 of 100 cases)"
    if found.pairs:
        whole, alone = floors(found)
        note += f"; noise floor of the cosine: {whole:.1g} over all blocks, at most {alone:.1g} in one block"
    return [(note, _FAINT), *((f"{letter(i)} = {name}", _TEXT) for i, name in enumerate(found.names))]


def panels(found: Interference) -> list[Panel]:
    """Return what is shown of each pair: its figures, by what they are called."""
    many = found.comparisons
    made = [
        Panel("cosine", lambda block, i, j: _cosine(block, i, j, many), ("against", "the same")),
        Panel("directions written", lambda block, i, j: _excess(block.write, i, j, many)),
        Panel("directions read", lambda block, i, j: _excess(block.read, i, j, many)),
    ]
    for kind, title in {"Q-K": "queries x keys", "O-V": "values x output"}.items():
        if kind in found.total.crossed:
            cell = lambda block, i, j, kind=kind: _excess(block.crossed.get(kind), i, j, many, 100.0)  # noqa: E731
            made.append(Panel(title, cell, ("chance", "x100")))
    return made


def _cosine(block: BlockFigures, i: int, j: int, many: int) -> Cell | None:
    """From the noise floor to 1 by the logarithm."""
    if not block.variance[i, j]:
        return None
    if not block.found(i, j, many):
        return _SILENT
    value, floor = block.cos(i, j), block.floor(i, j, many)
    strength = 1 - log(min(max(abs(value), floor), 1.0)) / log(min(floor, 0.99))
    text = f"{value:+.2f}" if abs(value) >= 0.005 else f"{value:+.0e}"
    return Cell(max(strength, 0.02) * (1 if value > 0 else -1), text)


def _excess(excess: OverlapExcess | None, i: int, j: int, many: int, most: float = 0.0) -> Cell | None:
    """From chance to all that there is, or to `most` times chance, by the logarithm."""
    if excess is None or not excess.expected[i, j]:
        return None
    if not excess.found(i, j, many):
        return _SILENT
    times = excess.times(i, j)
    most = most or float(excess.most[i, j] / excess.expected[i, j])
    strength = log(times) / log(max(most, 1.001))
    return Cell(min(max(strength, 0.02), 1.0), f"x{times:.2g}" if times < 100 else f"x{times:.0f}")


def _draw(pen: ImageDraw.ImageDraw, place: tuple[int, int, int], cell: Cell | None, panel: Panel, font: Font) -> None:
    x, y, width = place
    if cell is None:
        return
    middle = (x + width / 2, y + _ROW / 2)
    colour = _colour(cell.strength, panel) if cell.strength else _QUIET
    pen.rectangle((x, y, x + width - 2, y + _ROW - 2), fill=colour)
    if width > 16 and font.getlength(cell.text) <= width - 2:
        pen.text(middle, cell.text, "#000000" if _brightness(colour) > 105 else "#ffffff", font, "mm")


def _colour(strength: float, panel: Panel) -> Colour:
    if panel.two_sided:
        return _mixed(_QUIET, _ALIKE if strength > 0 else _AGAINST, 0.2 + 0.8 * min(abs(strength), 1.0))
    low, middle, high = _SHARED
    return _mixed(low, middle, 2 * strength) if strength < 0.5 else _mixed(middle, high, 2 * strength - 1)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _brightness(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _legend(pen: ImageDraw.ImageDraw, x: int, y: int, panel: Panel, font: Font) -> None:
    for step in range(_LEGEND):
        share = step / (_LEGEND - 1)
        strength = 2 * share - 1 if panel.two_sided else share
        quiet = panel.two_sided and abs(strength) < 0.1
        pen.line((x + step, y, x + step, y + 8), fill=_QUIET if quiet else _colour(strength, panel))
    pen.text((x, y + 13), panel.ends[0], _FAINT, font)
    pen.text((x + _LEGEND, y + 13), panel.ends[1], _FAINT, font, "ra")


def loudness(found: Interference, base: Norms) -> dict[str, float]:
    """Return the norm of each block's sum over that of the weights it changes."""
    sums: dict[str, list[float]] = {}
    for name, (norm, _) in found.layers.items():
        for block in (str(block_of(name)), EVERYWHERE) if name in base else ():
            one, other = sums.get(block, (0.0, 0.0))
            sums[block] = [one + norm**2, other + base[name][0] ** 2]
    return {block: (one / other) ** 0.5 for block, (one, other) in sums.items() if other}


def _bars(
    pen: ImageDraw.ImageDraw, x: int, rows: Iterable[tuple[int, str]], loud: Mapping[str, float], font: Font
) -> None:
    if not loud:
        return
    pen.text((x, 40), "sum relative to base", _TEXT, font)
    most = max(loud.values()) or 1.0
    for top, label in rows:
        if label in loud:
            length = 90 * loud[label] / most
            pen.rectangle((x, top + 3, x + max(length, 1), top + _ROW - 5), fill=_BAR)
            pen.text((x + length + 6, top + 3), percent(loud[label]), _FAINT, font)


def percent(share: float) -> str:
    """Return a share in two figures."""
    return f"{100 * share:.0f}%" if share >= 0.095 else f"{100 * share:.2g}%"
