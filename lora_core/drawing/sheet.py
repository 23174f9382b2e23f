"""Pictures side by side with words beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from PIL import Image

from . import letters

Box = tuple[int, int, int, int]  # left, top, right, bottom
_GAP, _PAPER, _TEXT, _FAINT = 8, "#1b1b1f", "#e6e6ee", "#a8a8b4"


@dataclass(frozen=True)
class SheetRow:
    """A line of text and the pictures below it, each with a few words of its own or none."""

    title: str
    pictures: Sequence[Image.Image]
    labels: Sequence[str] = ()


def sheet(rows: Sequence[SheetRow], heading: str = "", tile: int = 0) -> Image.Image:
    """Return one picture of all rows. Pictures keep their size, or fit into a square of `tile` when it is not 0."""
    return placed(rows, heading, tile)[0]


def placed(rows: Sequence[SheetRow], heading: str = "", tile: int = 0) -> tuple[Image.Image, list[Box]]:
    """As `sheet`, and where each picture is in it, row by row."""
    fitted = [[_fitted(picture, tile) for picture in row.pictures] for row in rows]
    columns = max((len(row) for row in fitted), default=0)
    width = max((picture.width for row in fitted for picture in row), default=0)
    size = max(12, min(width // 14, 28))
    font, line = letters.font(size), size + 6
    page_width = columns * (width + _GAP) + _GAP
    longest = max(page_width // (size // 2 + 1), 8)
    titles = [wrap(row.title, longest) for row in rows]
    labelled = [any(row.labels) for row in rows]
    heights = [
        len(title) * line + max((picture.height for picture in row), default=0) + (line if label else 0) + _GAP
        for title, row, label in zip(titles, fitted, labelled, strict=True)
    ]
    top = _GAP + (line if heading else 0)
    page = Image.new("RGB", (max(page_width, 1), top + sum(heights) + _GAP), _PAPER)
    pen, boxes = letters.pen(page, size), []
    if heading:
        pen.text((_GAP, _GAP), heading, _TEXT, font)
    for row, title, pictures, height in zip(rows, titles, fitted, heights, strict=True):
        for number, words in enumerate(title):
            pen.text((_GAP, top + number * line), words, _TEXT, font)
        below = top + len(title) * line
        for column, picture in enumerate(pictures):
            left = _GAP + column * (width + _GAP)
            page.paste(picture, (left, below))
            boxes.append((left, below, left + picture.width, below + picture.height))
            if column < len(row.labels):
                label = row.labels[column][: max(width // (size // 2), 4)]
                pen.text((left, below + picture.height + 1), label, _FAINT, font)
        top += height
    return page, boxes


def stacked(top: Image.Image, bottom: Image.Image) -> Image.Image:
    """`bottom`, as wide as `top`, below it."""
    fitted = bottom.resize((top.width, max(round(bottom.height * top.width / bottom.width), 1)))
    page = Image.new("RGB", (top.width, top.height + fitted.height), _PAPER)
    page.paste(top, (0, 0))
    page.paste(fitted, (0, top.height))
    return page


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return both at their own size, `right` at the top of what is free."""
    page = Image.new("RGB", (left.width + _GAP + right.width, max(left.height, right.height + 2 * _GAP)), _PAPER)
    page.paste(left, (0, 0))
    page.paste(right, (left.width + _GAP, _GAP))
    return page


def _fitted(picture: Image.Image, tile: int) -> Image.Image:
    if not tile:
        return picture
    scale = tile / max(picture.size)
    return picture.resize((max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)))
