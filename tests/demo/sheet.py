"""The demo's contact sheet: one row of pictures per stage, with what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_TILE, GAP, _HEAD, _FOOT = 192, 12, 30, 22
ROW = _HEAD + _TILE + _FOOT + GAP  # pixels from one row to the next; the first is GAP below the top
_PAPER, _INK, _FAINT = "#ffffff", "#202028", "#70707c"


def write(path: Path, rows: dict[str, list[Image.Image]], captions: Sequence[Sequence[str]]) -> None:
    """Rows by heading; `captions[row][column]` stands below each picture."""
    columns = max(map(len, rows.values()))
    page = Image.new("RGB", (columns * (_TILE + GAP) + GAP, len(rows) * ROW + GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    for row, (heading, pictures) in enumerate(rows.items()):
        top = GAP + row * ROW
        pen.text((GAP, top), heading.strip(), _INK, ImageFont.load_default(18))
        for column, picture in enumerate(pictures):
            left = GAP + column * (_TILE + GAP)
            page.paste(picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, top + _HEAD))
            text = captions[row][column].removesuffix(" background").replace(" on a ", " on ")
            pen.text((left, top + _HEAD + _TILE + 3), text, _FAINT, ImageFont.load_default(11))
    page.save(path)
