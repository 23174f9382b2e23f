"""A LoRA's health as a picture: the strength of every layer, and what a rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log10

from PIL import Image, ImageDraw

from ..drawing import letters
from ..drawing.plot import FAINT, PAPER, RAW, SMOOTH, TEXT, VALIDATION, beside, grid, write
from .health import Health
from .health_table import state
from .health_words import verdict
from .heat_map import percent

_SIZE = (640, 320)
_FRAME = (60, 58, _SIZE[0] - 16, _SIZE[1] - 32)
_LETTERS = 14  # px high: read at half the size, too
_MOST_DECADES = 5  # of shares, from the largest down
_COLOURS = {"": RAW, "loud": "#ff6b6b", "outlier": VALIDATION, "broken": "#ff6b6b", "dead": FAINT}


def health_page(name: str, health: Health) -> Image.Image:
    """Two panels of 640 x 320 side by side."""
    page = Image.new("RGB", (2 * _SIZE[0], _SIZE[1]), PAPER)
    page.paste(_layers(name, health), (0, 0))
    page.paste(_ranks(health), (_SIZE[0], 0))
    return page


def _layers(name: str, health: Health) -> Image.Image:
    """A bar for each layer by the logarithm of its share, and a mark at the foot where it has none."""
    image, pen = _panel([(f"{name}: {verdict(health)}", TEXT)])
    states = [state(health, layer) for layer in health.layers]
    seen = [(what, _COLOURS[what]) for what in _COLOURS if what and what in states]
    write(pen, (_FRAME[0], 32), [("share of each layer's weight, log scale", TEXT), *seen])
    left, top, right, bottom = _FRAME
    shares = [layer.share for layer in health.layers]
    high, low = max(shares, default=0.0) or 1.0, min((share for share in shares if share), default=1.0)
    decades = min(max(ceil(log10(high / low)), 1), _MOST_DECADES)
    width = (right - left) / max(len(shares), 1)
    for index, (share, what) in enumerate(zip(shares, states, strict=True)):
        x, down = left + width * index, min(-log10(share / high), decades) / decades if share else 1.0
        y = min(top + (bottom - top) * down, bottom - 3)
        pen.rectangle((x, y, max(x + width - 1, x), bottom), fill=_COLOURS[what])
    beside(pen, _FRAME, top, percent(high))
    beside(pen, _FRAME, bottom, percent(high * 10**-decades))
    write(pen, (left, bottom + 8), [(f"{len(shares)} layers, {percent(health.share())} of their weights", TEXT)])
    return image


def _ranks(health: Health) -> Image.Image:
    kept = health.kept()
    image, pen = _panel([("share of the squared norm that a rank holds", TEXT)])
    left, top, right, bottom = _FRAME
    at = [(left + (right - left) * k / max(len(kept) - 1, 1), bottom - (bottom - top) * v) for k, v in enumerate(kept)]
    if len(at) > 1:
        pen.line(at, fill=SMOOTH, width=2)
    if rank := health.rank_for():
        x, y = at[rank - 1]
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=VALIDATION)
        write(pen, (left, bottom + 8), [(f"rank 1 to {len(kept)}", TEXT), (f"99 % at rank {rank}", VALIDATION)])
    beside(pen, _FRAME, top, "100%")
    return image


def _panel(words: Sequence[tuple[str, str]]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", _SIZE, PAPER)
    pen = letters.pen(image, _LETTERS)
    grid(pen, _FRAME)
    write(pen, (12, 10), words)
    return image, pen
