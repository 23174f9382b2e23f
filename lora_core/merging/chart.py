"""A merge in a picture: what happened to the spectrum, and what each layer lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log10

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..drawing import letters
from ..drawing.plot import PAPER, RAW, SMOOTH, TEXT, VALIDATION, beside, grid, write
from .merge import Merged

_SIZE = (640, 320)
_FRAME = (60, 36, _SIZE[0] - 16, _SIZE[1] - 32)
_LETTERS = 14  # px high: read at half the size, too
_MOST_DECADES = 6  # of singular values, from the largest down
_SUM, _LOST = "#9a9aa6", "#ff6b6b"


def draw_merge(merged: Merged, method: str) -> Image.Image:
    """Two panels of 640 x 320 side by side."""
    sheet = Image.new("RGB", (2 * _SIZE[0], _SIZE[1]), PAPER)
    sheet.paste(_spectrum(merged, method), (0, 0))
    sheet.paste(_layers(merged), (_SIZE[0], 0))
    return sheet


def _spectrum(merged: Merged, method: str) -> Image.Image:
    """Singular values of all layers together, each the root of the squares' sum; what is kept is drawn thick."""
    names = list(merged.sums or merged.spectra)
    after = [merged.spectra[name] for name in names]
    kept = [sigma[: _rank(merged, name)] for name, sigma in zip(names, after, strict=True)]
    curves = [(together(list(merged.sums.values())), _SUM, 1, "exact sum")] if merged.sums else []
    curves += [(together(after), SMOOTH, 1, method), (together(kept), VALIDATION, 3, "kept")]
    of = f" of {len(names)} layers" if len(names) < len(merged.errors) else ""
    image, pen = _panel(
        [(f"singular values{of}, log scale:", TEXT), *((name, colour) for _, colour, _, name in curves)]
    )
    high = max((float(values[0]) for values, *_ in curves if len(values)), default=0.0) or 1.0
    length, low = max(len(values) for values, *_ in curves), min(float(v.min()) for v, *_ in curves if len(v))
    decades = min(max(ceil(log10(high / low)), 1), _MOST_DECADES) if low > 0 else _MOST_DECADES
    for values, colour, width, _ in reversed(curves):
        at = [(_x(k, length), _y(float(value) / high, decades)) for k, value in enumerate(values)]
        pen.line(at, fill=colour, width=width) if len(at) > 1 else pen.rectangle((*at[0], *at[0]), fill=colour)
    left, top, _, bottom = _FRAME
    beside(pen, _FRAME, top, f"{high:.2g}")
    beside(pen, _FRAME, bottom, f"{high * 10**-decades:.1g}")
    write(pen, (left, bottom + 8), [(f"component 1 to {length}", TEXT), *_departure(merged)])
    return image


def _layers(merged: Merged) -> Image.Image:
    if not any(merged.errors.values()):
        ranks = {name: float(_rank(merged, name)) for name in merged.errors}
        return _bars(ranks, [("rank of each layer (nothing was cut)", TEXT)], "{:.0f}", None)
    whole, ranks = f"of the whole {100 * merged.error:.3g} %", [_rank(merged, name) for name in merged.errors]
    words = [("relative error of each layer", TEXT), (whole, VALIDATION), (f"rank {as_range(ranks)}", TEXT)]
    return _bars(merged.errors, words, "{:.1%}", merged.error)


def as_range(values: Sequence[int]) -> str:
    """From the least to the largest, or the one that all are."""
    return " to ".join(str(value) for value in sorted({min(values), max(values)}))


def _bars(values: Mapping[str, float], words: Sequence[tuple[str, str]], form: str, line: float | None) -> Image.Image:
    image, pen = _panel(words)
    left, top, right, bottom = _FRAME
    high = max(values.values(), default=0.0) or 1.0
    width = (right - left) / max(len(values), 1)
    for index, value in enumerate(values.values()):
        x, y = left + width * index, bottom - (bottom - top) * value / high
        pen.rectangle((x, y, max(x + width - 1, x), bottom), fill=_LOST if value == 1.0 and line else RAW)
    if line is not None:
        y = bottom - (bottom - top) * line / high
        pen.line((left, y, right, y), fill=VALIDATION)
    beside(pen, _FRAME, top, form.format(high))
    below = [(f"{len(values)} layers", TEXT)]
    if line is not None:
        below.append((f"most: {max(values, key=values.__getitem__)[-48:]}", TEXT))
    write(pen, (left, bottom + 8), below)
    return image


def _departure(merged: Merged) -> list[tuple[str, str]]:
    return [(f"{100 * merged.departure:.3g} % different from the exact sum", _SUM)] if merged.sums else []


def _rank(merged: Merged, name: str) -> int:
    return merged.layers[name].rank if name in merged.layers else 0


def together(spectra: Sequence[Tensor]) -> Tensor:
    total = torch.zeros(max((len(sigma) for sigma in spectra), default=0), dtype=torch.float64)
    for sigma in spectra:
        total[: len(sigma)] += sigma.square()
    return total.sqrt()


def _panel(words: Sequence[tuple[str, str]]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", _SIZE, PAPER)
    pen = letters.pen(image, _LETTERS)
    grid(pen, _FRAME)
    write(pen, (_FRAME[0], 10), words)
    return image, pen


def _x(index: int, length: int) -> float:
    return _FRAME[0] + (_FRAME[2] - _FRAME[0]) * index / max(length - 1, 1)


def _y(share: float, decades: int) -> float:
    """On a logarithmic scale, what is below it on its lower edge."""
    down = min(-log10(share), decades) / decades if share > 0 else 1.0
    return _FRAME[1] + (_FRAME[3] - _FRAME[1]) * down
