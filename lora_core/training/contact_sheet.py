"""A picture of a data set as the trainer will see it: every example in its bucket's crop, with its caption."""

from __future__ import annotations

from PIL import Image, ImageDraw

from .dataset import Dataset, Example

_TILE, _CAPTION, _GAP, _COLUMNS, _MOST = 128, 28, 6, 6, 24
_PAPER, _TEXT = "#1b1b1f", "#c8c8d0"


def contact_sheet(dataset: Dataset) -> Image.Image:
    """Up to 24 examples, six to a row."""
    shown = dataset.examples[:_MOST]
    columns, rows = min(_COLUMNS, len(shown)), -(-len(shown) // _COLUMNS)
    size = (columns * (_TILE + _GAP) + _GAP, rows * (_TILE + _CAPTION + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for index, example in enumerate(shown):
        left = _GAP + index % _COLUMNS * (_TILE + _GAP)
        top = _GAP + index // _COLUMNS * (_TILE + _CAPTION + _GAP)
        _place(sheet, example, left, top)
    return sheet


def _place(sheet: Image.Image, example: Example, left: int, top: int) -> None:
    picture = Image.fromarray((example.pixels.float() * 255).round().byte().numpy())
    picture.thumbnail((_TILE, _TILE))
    sheet.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
    pen = ImageDraw.Draw(sheet)
    for line, start in enumerate(range(0, min(len(example.caption), 44), 22)):
        pen.text((left, top + _TILE + 2 + line * 12), example.caption[start : start + 22], fill=_TEXT)
