"""The loss curve as a picture, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from . import letters

PAPER, GRID, RAW, SMOOTH, TEXT = "#1b1b1f", "#33333a", "#3f5a78", "#6fb3ff", "#c8c8d0"
VALIDATION, PRESERVATION, FAINT = "#ffb454", "#dd9bc8", "#93a1b5"  # told apart by colour-blind people, too


def smooth(losses: Sequence[float], weight: float = 0.97) -> list[float]:
    """Exponential moving average without the start-up bias."""
    average, norm, result = 0.0, 0.0, []
    for loss in losses:
        average, norm = weight * average + (1 - weight) * loss, weight * norm + 1 - weight
        result.append(average / norm)
    return result


@dataclass(frozen=True)
class Marks:
    """Holds what is drawn beside the loss: (step, value) of validation, the best step, and (step, value) of the
    preserving loss and of the guided answer's error as a share of the base model's, which have scales of their own
    that start at 0."""

    validation: Sequence[tuple[int, float]] = ()
    best: int | None = None
    preservation: Sequence[tuple[int, float]] = ()
    guided: Sequence[tuple[int, float]] = ()


def draw_curve(
    losses: Sequence[float], steps: int, size: tuple[int, int] = (512, 256), marks: Marks = Marks()
) -> Image.Image:
    """Raw and smoothed loss over `steps`, and the marks; an empty or flat curve is drawn as what it is."""
    image = Image.new("RGB", size, PAPER)
    pen = letters.pen(image)
    left, top, right, bottom = frame = 48, 16, size[0] - 12, size[1] - 24
    grid(pen, frame)
    if not losses:
        return image
    average, validation = smooth(losses), [value for _, value in marks.validation]
    low, high = min([*average, *validation]), max([*average, *validation])
    spread = high - low if high - low > 1e-6 * abs(high) else 0.0  # less is the average's own rounding
    pad = spread * 0.25 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def points(values: Sequence[tuple[int, float]], low: float, high: float) -> list[tuple[float, float]]:
        return [
            (
                left + (right - left) * step / steps,
                bottom - (bottom - top) * (min(max(v, low), high) - low) / (high - low),
            )
            for step, v in values
        ]

    stride = max(len(losses) // (right - left), 1)
    for values, colour, width in ((losses, RAW, 1), (average, SMOOTH, 2)):
        if len(values) > 1:
            pen.line(points(list(enumerate(values, 1))[::stride], low, high), fill=colour, width=width)
    for values, colour in ((marks.preservation, PRESERVATION), (marks.guided, FAINT)):
        if len(values) > 1:
            most = max(value for _, value in values) or 1.0
            pen.line(points(values, 0.0, most * 1.1), fill=colour, width=1)
    at = points(marks.validation, low, high)
    if len(at) > 1:
        pen.line(at, fill=VALIDATION, width=2)
    for (x, y), (step, _) in zip(at, marks.validation, strict=True):
        radius = 5 if step == marks.best else 2
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=VALIDATION)
    for y, value in ((top, high), (bottom, low)):
        beside(pen, frame, y, f"{value:.4g}")
    words = [(f"step {len(losses)} of {steps}   loss {average[-1]:.4f}", TEXT)]
    if marks.validation:
        best = f" (best {marks.best})" if marks.best is not None else ""
        words.append((f"validation {validation[-1]:.4f}{best}", VALIDATION))
    if marks.preservation:
        words.append((f"preservation {marks.preservation[-1][1]:.3g}", PRESERVATION))
    if marks.guided:
        words.append((f"guided {100 * marks.guided[-1][1]:.0f} %", FAINT))
    write(pen, (left, bottom + 6), words)
    return image


def grid(pen: ImageDraw.ImageDraw, frame: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = frame
    for i in range(5):
        y = top + (bottom - top) * i / 4
        pen.line((left, y, right, y), fill=GRID)


def beside(pen: ImageDraw.ImageDraw, frame: tuple[int, int, int, int], y: float, text: str) -> None:
    """A label of the axis on the left, in the middle of its height, kept inside the picture."""
    pen.text((max(frame[0] - 6, pen.textlength(text) + 3), y), text, fill=TEXT, anchor="rm")


def write(pen: ImageDraw.ImageDraw, at: tuple[float, float], words: Sequence[tuple[str, str]]) -> None:
    """Texts of one line, each in its colour."""
    x, y = at
    for text, colour in words:
        pen.text((x, y), text, fill=colour)
        x += pen.textlength(text) + 14
