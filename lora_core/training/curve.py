"""The loss curve as a picture, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

_PAPER, _GRID, _RAW, _SMOOTH, _TEXT = "#1b1b1f", "#33333a", "#3f5a78", "#6fb3ff", "#c8c8d0"


def smooth(losses: Sequence[float], weight: float = 0.97) -> list[float]:
    """Exponential moving average without the start-up bias."""
    average, norm, result = 0.0, 0.0, []
    for loss in losses:
        average, norm = weight * average + (1 - weight) * loss, weight * norm + 1 - weight
        result.append(average / norm)
    return result


def draw_curve(losses: Sequence[float], steps: int, size: tuple[int, int] = (512, 256)) -> Image.Image:
    """Raw and smoothed loss over `steps`; an empty or flat curve is drawn as what it is."""
    image = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = 48, 16, size[0] - 12, size[1] - 24
    for i in range(5):
        y = top + (bottom - top) * i / 4
        pen.line((left, y, right, y), fill=_GRID)
    if not losses:
        return image
    average = smooth(losses)
    low, high = min(average), max(average)
    spread = high - low if high - low > 1e-6 * abs(high) else 0.0  # less is the average's own rounding
    pad = spread * 0.25 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        stride = max(len(values) // (right - left), 1)
        return [
            (
                left + (right - left) * (i + 1) / steps,
                bottom - (bottom - top) * (min(max(v, low), high) - low) / (high - low),
            )
            for i, v in list(enumerate(values))[::stride]
        ]

    for values, colour, width in ((losses, _RAW, 1), (average, _SMOOTH, 2)):
        if len(values) > 1:
            pen.line(points(values), fill=colour, width=width)
    pen.text((4, top - 6), f"{high:.4g}", fill=_TEXT)
    pen.text((4, bottom - 6), f"{low:.4g}", fill=_TEXT)
    pen.text((left, bottom + 6), f"step {len(losses)} of {steps}   loss {average[-1]:.4f}", fill=_TEXT)
    return image
