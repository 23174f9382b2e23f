"""Draws docs/icon.png and docs/banner.png, which pyproject.toml names for the Registry and the Manager.

python tests/draw_icon.py

Threads of five colours are woven on a loom; on the banner they leave it and become one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAPER, WARP, INK, FAINT = "#1c1d26", "#e9ebf5", "#ffffff", "#b9bccb"
COLOURS = ("#ffc247", "#8fd14f", "#5cb8ff", "#c79bff", "#ff8a70")
FINE = 4  # times larger while it is drawn, for smooth edges
ICON = 400  # pixels, the most that the Registry takes
BANNER = (1260, 540)  # 21 to 9
PITCH, THREAD = 0.152, 0.098  # of the side: from thread to thread, and how thick one is
GAP = 0.016  # dark edge of a thread that runs above another

Box = tuple[float, float, float, float]


def places(middle: float, side: float) -> list[float]:
    """The middles of the five threads of a weave around a point."""
    return [middle + (number - 2) * PITCH * side for number in range(5)]


def weave(pen: ImageDraw.ImageDraw, x: float, y: float, side: float) -> None:
    """Five threads across five others, each above every second."""
    reach = 2.75 * PITCH * side
    for column in places(x, side):
        bar(pen, (column, y - reach, column, y + reach), THREAD * side, WARP)
    for row, colour in zip(places(y, side), COLOURS, strict=True):
        bar(pen, (x - reach, row, x + reach, row), THREAD * side, colour)
    for number, (column, row) in enumerate((column, row) for row in places(y, side) for column in places(x, side)):
        crossing(pen, column, row, side, COLOURS[number // 5], upright=bool(number % 2))


def crossing(pen: ImageDraw.ImageDraw, x: float, y: float, side: float, colour: str, upright: bool) -> None:
    """A place where one thread runs above the other, with a dark edge on both sides."""
    half, edge = THREAD * side / 2, GAP * side
    wide, tall = (edge, 0) if upright else (0, edge)
    pen.rectangle((x - half - wide, y - half - tall, x + half + wide, y + half + tall), PAPER)
    pen.rectangle((x - half - tall, y - half - wide, x + half + tall, y + half + wide), WARP if upright else colour)


def bar(pen: ImageDraw.ImageDraw, ends: Box, width: float, colour: str) -> None:
    left, top, right, bottom = ends
    half = width / 2
    pen.rounded_rectangle((left - half, top - half, right + half, bottom + half), half, colour)


def curve(start: tuple[float, float], end: tuple[float, float], steps: int = 240) -> Iterator[tuple[float, float]]:
    """From one level to another, level at both ends."""
    for step in range(steps + 1):
        share = step / steps
        slow = share * share * (3 - 2 * share)
        yield start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * slow


def icon() -> Image.Image:
    side = ICON * FINE
    page = Image.new("RGBA", (side, side), "#00000000")
    pen = ImageDraw.Draw(page)
    pen.rounded_rectangle((0, 0, side - 1, side - 1), 0.2 * side, PAPER)
    weave(pen, side / 2, side / 2, 0.98 * side)
    return page.resize((ICON, ICON), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    width, height = (FINE * length for length in BANNER)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    side, x, y = 0.78 * height, 0.48 * height, 0.5 * height
    leaves, join, level, radius = x + 2.7 * PITCH * side, 0.63 * width, 0.79 * height, THREAD * side / 2
    for start, colour in zip(places(y, side), COLOURS, strict=True):
        for px, py in curve((leaves, start), (join, level)):
            pen.ellipse((px - radius, py - radius, px + radius, py + radius), colour)
    bar(pen, (join, level, 0.95 * width, level), 2 * radius, WARP)
    weave(pen, x, y, side)
    pen.text((0.5 * width, 0.28 * height), "LoRA Loom", INK, ImageFont.load_default(0.2 * height), anchor="lm")
    line = "Train, stack and merge LoRAs in ComfyUI"
    pen.text((0.504 * width, 0.435 * height), line, FAINT, ImageFont.load_default(0.054 * height), anchor="lm")
    return page.resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    icon().save(DOCS / "icon.png", optimize=True)
    banner().save(DOCS / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
