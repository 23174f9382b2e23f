"""A run in pictures: losses, losses by noise level, norms, the loss of each picture, and what there is at which
strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from ..drawing import letters
from ..drawing.plot import (
    FAINT,
    GRID,
    PAPER,
    PRESERVATION,
    SMOOTH,
    TEXT,
    VALIDATION,
    Marks,
    beside,
    draw_curve,
    grid,
    write,
)
from .bleeding import NONE, Bleeding
from .record import BANDS, Record, means
from .report import Story
from .strengths import StrengthCurve

_SIZE = (512, 256)
_FRAME = (48, 28, _SIZE[0] - 12, _SIZE[1] - 24)
_MOST = 16  # pictures
_BAR = 40  # pixels, the widest
_ODD = "#ff7a6b"
_NOTHING, _ALL = (43, 43, 49), (255, 180, 84)  # of a concept under a trigger
_TURN = 0.46  # from which on black letters stand out more than white ones
_NAMES, _TITLE = 64, 18  # pixels beside and above the fields


def marks(record: Record, best: int | None) -> Marks:
    """Return the marks that the record of a run gives its curve."""
    validation = [(point.step, point.mean) for point in record.points]
    if record.base and record.points:
        validation.insert(0, (0, sum(record.base) / len(record.base)))
    kept = [(window.step, window.preservation) for window in record.windows if window.preservation]
    answers = record.answers() if record.points else {}
    first = answers.get(0) or 1.0
    return Marks(validation, best, kept, [(step, error / first) for step, error in answers.items()])


def draw_charts(story: Story, thumbnails: Mapping[int, Image.Image]) -> Image.Image:
    """Four panels of 512 x 256, two to a row, a fifth where strengths were measured, and one where concepts
    were compared. `thumbnails` are the pictures'
    by index."""
    curve = draw_curve(story.losses, story.steps, _SIZE, marks(story.record, story.verdict.best))
    panels = [curve, _bands(story), _norms(story), _pictures(story, thumbnails)]
    if story.strength is not None and story.strength.points:
        panels.append(draw_strengths(story.strength))
    if story.bleeding is not None:
        panels.append(draw_bleeding(story.bleeding))
    sheet = Image.new("RGB", (2 * _SIZE[0], -(-len(panels) // 2) * _SIZE[1]), PAPER)
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index % 2 * _SIZE[0], index // 2 * _SIZE[1]))
    return sheet


def _panel(words: Sequence[tuple[str, str]]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", _SIZE, PAPER)
    pen = letters.pen(image)
    write(pen, (_FRAME[0], 8), words)
    return image, pen


def _bands(story: Story) -> Image.Image:
    series = [(means(story.record.bands()), SMOOTH, "training")]
    if story.record.points:
        best = story.record.best_point()
        series.append((story.validation_bands(story.record.base), FAINT, "validation, base model"))
        series.append((story.validation_bands(best.losses), VALIDATION, "validation, best"))
    image, pen = _panel([("loss by noise level:", TEXT), *((name, colour) for _, colour, name in series)])
    left, top, right, bottom = _FRAME
    grid(pen, _FRAME)
    high = max((value for values, _, _ in series for value in values if value), default=0.0) or 1.0
    width = (right - left) / BANDS
    for at, (values, colour, _) in enumerate(series):
        for i, value in enumerate(values):
            x = left + width * (i + 0.1 + 0.8 * at / len(series))
            if value:
                y = bottom - (bottom - top) * value / high
                pen.rectangle((x, y, x + 0.8 * width / len(series) - 1, bottom), fill=colour)
    for y, text in ((top, f"{high:.3g}"), (bottom, "0")):
        beside(pen, _FRAME, y, text)
    for text, x, anchor in (("clean", left, "la"), ("noise", right, "ra")):
        pen.text((x, bottom + 6), text, fill=TEXT, anchor=anchor)
    return image


def _norms(story: Story) -> Image.Image:
    windows = story.record.windows
    series = [("gradient", SMOOTH, [w.grad_norm for w in windows], "")]
    if any(window.text_norm for window in windows):
        series.append(("text gradient", FAINT, [w.text_norm for w in windows], ""))
    for at, (name, colour) in enumerate((("correction", VALIDATION), ("text correction", PRESERVATION))):
        values = [100 * w.sizes[at] for w in windows if len(w.sizes) > at]
        if any(values):
            series.append((name, colour, values, " %"))
    words = [(f"{name} {values[-1]:.3g}{unit}", colour) for name, colour, values, unit in series if values]
    image, pen = _panel([("norms, each scaled to its largest value", TEXT)])
    grid(pen, _FRAME)
    write(pen, (_FRAME[0], _FRAME[3] + 6), words)
    for _, colour, values, _ in series:
        _line(pen, values, colour)
    return image


def draw_strengths(curve: StrengthCurve, concept: str = "concept", suggests: bool = True) -> Image.Image:
    """Draw the concept, or what stands for it, against what else changes, over the strengths, and where the suggestion
    lies if it `suggests` one. `curve` has points."""
    series = (("concept", VALIDATION, concept), ("leak", PRESERVATION, "what else changes"))
    image, pen = _panel([("by strength, of what there is at 1:", TEXT), *((words, c) for _, c, words in series)])
    left, top, right, bottom = _FRAME
    grid(pen, _FRAME)
    high = max(1.25, *(max(point.concept, point.leak) for point in curve.points))
    last = curve.points[-1].strength

    def at(strength: float, share: float) -> tuple[float, float]:
        return left + (right - left) * strength / last, bottom - (bottom - top) * max(share, 0.0) / high

    found = curve.suggested() if suggests else None
    for name, colour, _ in series:
        pen.line([at(point.strength, getattr(point, name)) for point in curve.points], fill=colour, width=2)
        if found:
            x, y = at(found.strength, getattr(found, name))
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    if found:
        write(pen, (left, bottom + 6), [(f"use it at {found.strength:g}", TEXT)])
    for y, share in ((top, high), (bottom, 0.0)):
        beside(pen, _FRAME, y, f"{100 * share:.0f} %")
    return image


def draw_bleeding(found: Bleeding) -> Image.Image:
    """Draw a field for the pictures of each concept, in rows, under each trigger, in columns: the more of the concept
    is there, the brighter."""
    image, pen = _panel([("pictures of a concept (rows) under a trigger, of what its own does", TEXT)])
    columns, (left, top, right, bottom) = (*found.triggers, NONE), _FRAME
    left += _NAMES
    width, height = (right - left) / len(columns), (bottom - top - _TITLE) / len(found.triggers)
    for at, name in enumerate(columns):
        pen.text((left + width * (at + 0.5), top), _short(name, width), fill=TEXT, anchor="ma")
    for of, name in enumerate(found.triggers):
        y = top + _TITLE + height * of
        pen.text((left - 6, y + height / 2), _short(name, _NAMES + _FRAME[0] - 12), fill=TEXT, anchor="rm")
        for by in range(len(columns)):
            _field(pen, (left + width * by, y, width - 2, height - 2), found.share(of, by))
    return image


def _field(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], share: float | None) -> None:
    """A share of a concept in a box of left, top, width and height; None where it was not learned."""
    x, y, width, height = box
    lit = min(max(share or 0.0, 0.0), 1.0)
    fill = tuple(round(low + lit * (high - low)) for low, high in zip(_NOTHING, _ALL, strict=True))
    pen.rectangle((x, y, x + width, y + height), fill=fill)
    said = "-" if share is None else f"{100 * max(share, 0.0):.0f} %"
    pen.text((x + width / 2, y + height / 2), said, fill="black" if lit > _TURN else "white", anchor="mm")


def _short(name: str, width: float) -> str:
    """The name as far as it goes into so many pixels."""
    most = max(int(width / 7), 3)
    return name if len(name) <= most else name[: most - 2] + ".."


def _line(pen: ImageDraw.ImageDraw, values: Sequence[float], colour: str) -> None:
    left, top, right, bottom = _FRAME
    if len(values) < 2:
        return
    high, last = max(values) or 1.0, len(values) - 1
    at = [(left + (right - left) * i / last, bottom - (bottom - top) * value / high) for i, value in enumerate(values)]
    pen.line(at, fill=colour, width=2)


def _pictures(story: Story, thumbnails: Mapping[int, Image.Image]) -> Image.Image:
    rows, odd = story.pictures(), story.odd()
    shown = rows if len(rows) <= _MOST else [*rows[: _MOST - 4], *rows[-4:]]
    image, pen = _panel([("loss of each picture, hardest first", TEXT)] + ([("unusual", _ODD)] if odd else []))
    left, top, right, bottom = _FRAME
    low = bottom - _BAR - 6  # below it are the pictures
    most = max((abs(each.share) for _, each in shown), default=0.0) or 1.0
    middle, half = (top + low) / 2, (low - top) / 2
    for y, text in ((top, f"+{100 * most:.0f} %"), (middle, "0"), (low, f"-{100 * most:.0f} %")):
        pen.line((left, y, right, y), fill=GRID)
        beside(pen, _FRAME, y, text)
    width = (right - left) / max(len(shown), 1)
    bar = min(width - 4, _BAR)
    for i, (index, each) in enumerate(shown):
        x, y = left + width * (i + 0.5), middle - half * each.share / most
        box = (x - bar / 2, min(y, middle), x + bar / 2, max(y, middle))
        pen.rectangle(box, fill=_ODD if index in odd else SMOOTH)
        if index in thumbnails:
            small = thumbnails[index].copy()
            small.thumbnail((int(bar), _BAR))
            image.paste(small, (int(x - small.width / 2), bottom - (_BAR + small.height) // 2))
    return image
