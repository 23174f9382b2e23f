"""The cards of templates: two pictures and a few words, or a drawing where the demo can make no picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from demo import shapes
from demo.shapes import Scene
from demo.templates import EDIT, FILES, HEALTH, KANDINSKY, PREFERENCE, REGIONS, SLIDER, TRAIN_DISTILLED, WUERSTCHEN
from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE, TILE, GAP = 440, 203, 12
LIKED = shapes.Scene("star", "yellow", "blue", size=0.7)
PAPER, INK, FAINT = "#1c1d26", "#ffffff", "#b9bccb"


@dataclass(frozen=True)
class Half:
    """One of the two pictures: what is below it, and how it is drawn."""

    word: str
    prompt: str
    loras: tuple[str, ...]
    seed: int = 101


@dataclass(frozen=True)
class Card:
    title: str
    line: str
    colour: str
    left: Half
    right: Half


def card(of: Card, pictures: list[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    for column, (half, picture) in enumerate(zip((of.left, of.right), pictures, strict=True)):
        left = SIDE - GAP - TILE if column else GAP
        page.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, GAP))
        pen.text((left + TILE / 2, GAP + TILE + 24), half.word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), of.title, of.colour, ImageFont.load_default(104), anchor="mm")
    pen.text((SIDE / 2, 406), of.line, INK, ImageFont.load_default(34), anchor="mm")
    return page


def scheme(title: str) -> Image.Image:
    """A card for a system of two stages, without a picture of its making: what the prior makes, and what follows."""
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    cells = np.random.default_rng(len(title)).integers(60, 230, (8, 8, 3), dtype=np.uint8)
    code = Image.fromarray(cells).resize((TILE, TILE), Image.Resampling.NEAREST)
    for column, word in enumerate(("prior", "decoder")):
        left = SIDE - GAP - TILE if column else GAP
        blur = code.resize((TILE // 40, TILE // 40), Image.Resampling.BOX).resize(
            (TILE, TILE), Image.Resampling.BICUBIC
        )
        page.paste(blur if column else code, (left, GAP))
        pen.text((left + TILE / 2, GAP + TILE + 24), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), title, "#ffc247", ImageFont.load_default(72), anchor="mm")
    pen.text((SIDE / 2, 406), "text to picture", INK, ImageFont.load_default(34), anchor="mm")
    return page


def liked() -> Image.Image:
    """A card for pairs, without a picture of its making: what is liked, and what is not."""
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    for column, (word, scene) in enumerate((("liked", LIKED), ("not liked", replace(LIKED, colour="gray", size=0.4)))):
        left = SIDE - GAP - TILE if column else GAP
        drawn = shapes.draw(scene, 2 * TILE, 2 * TILE).movedim(0, -1).mul(255).byte().numpy()
        page.paste(Image.fromarray(drawn).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, GAP))
        pen.text((left + TILE / 2, GAP + TILE + 24), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), "Prefer", "#ff9ecb", ImageFont.load_default(104), anchor="mm")
    pen.text((SIDE / 2, 406), "pairs of pictures", INK, ImageFont.load_default(34), anchor="mm")
    return page


def parts() -> Image.Image:
    """The card of a mask for each LoRA, without a picture of its making: where each of two is on."""
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    for column, (word, shape, colour) in enumerate((("inside", "heart", "red"), ("outside", "arrow", "yellow"))):
        left = SIDE - GAP - TILE if column else GAP
        scene = Scene(shape, colour, "blue", size=0.45, x=0.5 if column else -0.5)
        pixels = (255 * shapes.draw(scene, TILE, TILE)).byte().movedim(0, -1).numpy()
        page.paste(Image.fromarray(pixels), (left, GAP))
        off = left if column else left + TILE // 2
        shade = Image.new("RGBA", (TILE // 2, TILE), (28, 29, 38, 190))
        page.paste(shade, (off, GAP), shade)
        pen.text((left + TILE / 2, GAP + TILE + 24), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), "Regions", "#ff9ac1", ImageFont.load_default(88), anchor="mm")
    pen.text((SIDE / 2, 406), "a mask for each LoRA", INK, ImageFont.load_default(34), anchor="mm")
    return page


def edit() -> Image.Image:
    """A card for edits: a reference, and what is made of it."""
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    cells = np.random.default_rng(3).integers(60, 230, (5, 5, 3), dtype=np.uint8)
    before = Image.fromarray(cells).resize((TILE, TILE), Image.Resampling.BICUBIC)
    after = ImageOps.posterize(ImageOps.autocontrast(ImageOps.grayscale(before)), 2).convert("RGB")
    for picture, word, left in ((before, "reference", GAP), (after, "result", SIDE - GAP - TILE)):
        page.paste(picture, (left, GAP))
        pen.text((left + TILE / 2, GAP + TILE + 24), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), "Edit", "#ff9ecb", ImageFont.load_default(104), anchor="mm")
    pen.text((SIDE / 2, 406), "reference pictures", INK, ImageFont.load_default(34), anchor="mm")
    return page


def assisted() -> Image.Image:
    """A card without a picture of its making: the adapter that is on while training, and off when used."""
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    for column, word in enumerate(("training", "use")):
        left = SIDE - GAP - TILE if column else GAP
        for row, (part, colour) in enumerate((("LoRA", "#8fd14f"), ("adapter", "#5cb8ff"), ("model", "#c79bff"))):
            box = (left + 8, GAP + 8 + 64 * row, left + TILE - 8, GAP + 60 + 64 * row)
            off = column and part == "adapter"
            pen.rounded_rectangle(box, 10, None if off else colour, FAINT if off else colour, 2)
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            pen.text(middle, "off" if off else part, FAINT if off else PAPER, ImageFont.load_default(30), anchor="mm")
        pen.text((left + TILE / 2, GAP + TILE + 24), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), "Train", "#8fd14f", ImageFont.load_default(104), anchor="mm")
    pen.text((SIDE / 2, 406), "Turbo, schnell", INK, ImageFont.load_default(34), anchor="mm")
    return page


def bars() -> Image.Image:
    """A card of layers as LoRA Health shows them, two of them far too loud, and mended."""
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    heights = np.random.default_rng(2).integers(40, 70, 12).tolist()
    for column, (word, loud) in enumerate((("loud layers", {4: TILE, 9: 170}), ("mended", {}))):
        left, bottom = SIDE - GAP - TILE if column else GAP, GAP + TILE
        for at, height in enumerate(heights):
            x, colour = left + at * TILE / len(heights), "#ff6b6b" if at in loud else "#5cb8ff"
            pen.rectangle((x, bottom - loud.get(at, height), x + TILE / len(heights) - 4, bottom), fill=colour)
        pen.text((left + TILE / 2, bottom + 24), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), "Repair", "#ff8a70", ImageFont.load_default(104), anchor="mm")
    pen.text((SIDE / 2, 406), "health of a LoRA, its blocks", INK, ImageFont.load_default(34), anchor="mm")
    return page


def slider() -> Image.Image:
    """A card for strengths, without a picture of its making: a star on three grounds, and a knob."""
    page, tile = Image.new("RGB", (SIDE, SIDE), PAPER), (SIDE - 4 * GAP) // 3
    pen = ImageDraw.Draw(page)
    for column, (word, ground) in enumerate((("-2", "black"), ("0", "gray"), ("2", "white"))):
        left = GAP + column * (tile + GAP)
        drawn = shapes.draw(replace(LIKED, background=ground, pattern=""), 2 * tile, 2 * tile)
        shown = Image.fromarray(drawn.movedim(0, -1).mul(255).byte().numpy())
        page.paste(shown.resize((tile, tile), Image.Resampling.LANCZOS), (left, 3 * GAP))
        pen.text((left + tile / 2, tile + 64), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.line((2 * GAP, 242, SIDE - 2 * GAP, 242), FAINT, 6)
    pen.ellipse((SIDE - 100, 222, SIDE - 60, 262), "#7fd4ff")
    pen.text((SIDE / 2, 328), "Slider", "#7fd4ff", ImageFont.load_default(104), anchor="mm")
    pen.text((SIDE / 2, 406), "from prompts alone", INK, ImageFont.load_default(34), anchor="mm")
    return page


def files() -> Image.Image:
    """A card for files, without a picture of its making: a file, and a smaller one in another format."""
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(page)
    for column, (word, rank, high) in enumerate((("kohya", 128, 178), ("diffusers", 16, 124))):
        left, wide = SIDE - GAP - TILE if column else GAP, high * 3 // 4
        x, y, fold = left + (TILE - wide) / 2, GAP + TILE - high, 34
        sheet = ((x, y), (x + wide - fold, y), (x + wide, y + fold), (x + wide, y + high), (x, y + high))
        pen.polygon(sheet, "#b6e36a")
        pen.polygon((sheet[1], (sheet[1][0], sheet[2][1]), sheet[2]), "#6f9c2e")
        middle = (left + TILE / 2, y + high * 0.62)
        pen.text(middle, f"rank\n{rank}", PAPER, ImageFont.load_default(32), anchor="mm", align="center")
        pen.text((left + TILE / 2, GAP + TILE + 24), word, FAINT, ImageFont.load_default(34), anchor="mm")
    pen.text((SIDE / 2, 328), "Files", "#b6e36a", ImageFont.load_default(104), anchor="mm")
    pen.text((SIDE / 2, 406), "format, size, passport", INK, ImageFont.load_default(34), anchor="mm")
    return page


SCHEMES = (KANDINSKY, WUERSTCHEN)  # what the demo's base cannot draw
SPECIAL = {
    PREFERENCE: liked,
    REGIONS: parts,
    EDIT: edit,
    TRAIN_DISTILLED: assisted,
    HEALTH: bars,
    SLIDER: slider,
    FILES: files,
}
PLAIN = {name: partial(scheme, name.split()[0]) for name in SCHEMES} | SPECIAL
