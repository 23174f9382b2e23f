"""A picture of a data set as the trainer will see it: every example in its bucket's crop, with its caption."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..drawing import letters
from .dataset import Dataset, Example

_TILE, _CAPTION, _GAP, _COLUMNS, _MOST = 128, 28, 6, 6, 24
_PAPER, _TEXT, _MARK = "#1b1b1f", "#c8c8d0", "#ff6b5e"


def contact_sheet(dataset: Dataset) -> Image.Image:
    """Up to 24 examples, six to a row, with the beginning of their captions."""
    return _sheet([(example, example.caption, False) for example in dataset.examples[:_MOST]])


def marked_sheet(dataset: Dataset, marks: dict[int, Sequence[str]]) -> Image.Image:
    """Up to 24 examples, those with `marks` (by the id of their origin) first, framed and with their marks."""
    pictures = {id(example.origin): example for example in reversed(dataset.examples)}
    shown = sorted(reversed(pictures.items()), key=lambda item: not marks.get(item[0]))[:_MOST]
    return _sheet(
        [(each, ", ".join(dict.fromkeys(marks.get(key, ()))) or each.caption, key in marks) for key, each in shown]
    )


def _sheet(tiles: list[tuple[Example, str, bool]]) -> Image.Image:
    """Tiles of example, text below it, and whether it is marked."""
    columns, rows = min(_COLUMNS, len(tiles)), -(-len(tiles) // _COLUMNS)
    size = (columns * (_TILE + _GAP) + _GAP, rows * (_TILE + _CAPTION + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for index, (example, text, marked) in enumerate(tiles):
        left = _GAP + index % _COLUMNS * (_TILE + _GAP)
        top = _GAP + index // _COLUMNS * (_TILE + _CAPTION + _GAP)
        _place(sheet, example, text, left, top)
        if marked:
            ImageDraw.Draw(sheet).rectangle((left - 2, top - 2, left + _TILE + 1, top + _TILE + 1), None, _MARK, 2)
    return sheet


def _place(sheet: Image.Image, example: Example, text: str, left: int, top: int) -> None:
    picture = Image.fromarray((example.pixels.float() * 255).round().byte().numpy())
    picture.thumbnail((_TILE, _TILE))
    sheet.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
    pen = letters.pen(sheet)
    for line, start in enumerate(range(0, min(len(text), 44), 22)):
        pen.text((left, top + _TILE + 2 + line * 12), text[start : start + 22], fill=_TEXT)
