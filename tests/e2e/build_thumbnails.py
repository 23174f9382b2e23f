"""Makes the templates' thumbnails: `python tests/e2e/build_thumbnails.py demo/loras`, after `python dev.py demo`.

Two pictures drawn by the demo's base and LoRAs, a word below each, and one large word: a card of the Templates dialog
is about 220 pixels wide, half of what is drawn here. A card whose LoRAs are not in demo/loras is left as it is:
`concepts` is what the template of several concepts trains from the demo's pictures.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

import numpy as np  # noqa: E402
from demo import shapes  # noqa: E402
from demo.shapes import Scene  # noqa: E402
from demo.templates import (  # noqa: E402
    CONCEPTS,
    EDIT,
    FOLDER,
    HEALTH,
    KANDINSKY,
    PREFERENCE,
    REGIONS,
    SLIDER,
    STACK,
    TRAIN_DISTILLED,
    WUERSTCHEN,
    api_graph,
)
from harness.server import ComfyServer, Graph  # noqa: E402
from PIL import Image, ImageDraw, ImageFont, ImageOps  # noqa: E402

from e2e.template_graphs import GRAPHS  # noqa: E402

SIDE, TILE, GAP = 440, 203, 12
LIKED = shapes.Scene("star", "yellow", "blue", size=0.7)
PAPER, INK, FAINT = "#1c1d26", "#ffffff", "#b9bccb"
HEART, ARROW = "a yellow heart on a blue background", "a pink arrow on a striped green background"


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


BOTH, ONE = ("heart", "arrow"), ("concepts",)
DRAWN, SCHEMES = [*[*GRAPHS][:6], CONCEPTS], (KANDINSKY, WUERSTCHEN)  # with the demo's base, and what it cannot draw
CARDS = dict(zip(DRAWN, (
    Card("Train", "one checkpoint file", "#ffc247", Half("before", HEART, ()), Half("after", HEART, ("heart",))),
    Card("Train", "diffusion model", "#8fd14f", Half("before", ARROW, (), 103), Half("after", ARROW, ("arrow",), 103)),
    Card("Stack", "any number of LoRAs", "#5cb8ff", Half("heart +", HEART, BOTH), Half("arrow", ARROW, BOTH, 103)),
    Card("Merge", "many into one file", "#ff8a70", Half("2 files", HEART, BOTH, 104), Half("1 file", HEART, ("merged",), 104)),
    Card("Good?", "leaks, conflicts, copies", "#c79bff", Half("with", HEART, BOTH, 107), Half("without", HEART, ("arrow",), 107)),
    Card("Publish", "contract, test, signature", "#5fd6c4", Half("yours", HEART, ("heart",), 102), Half("signed", HEART, ("heart",), 108)),
    Card("Several", "concepts in one LoRA", "#f2a0d0", Half("heart", HEART, ONE), Half("arrow", ARROW, ONE, 103)),
), strict=True))  # fmt: skip


def drawn(server: ComfyServer, workflow: Graph, half: Half) -> Image.Image:
    prompt, *_ = [node for node in workflow.values() if node["class_type"] == "CLIPTextEncode"]
    prompt["inputs"]["text"] = half.prompt
    for node in workflow.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["seed"] = half.seed
        if node["class_type"] == "LoraLoom_LoadLoraStack":
            node["inputs"]["rows"] = "\n".join(f"<lora:{FOLDER}/{name}:1>" for name in half.loras)
    outputs = server.run(workflow)["outputs"].values()
    image = next(picture for output in outputs for picture in output.get("images", []))
    return Image.open(io.BytesIO(server.view(image))).convert("RGB")


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


SPECIAL = {PREFERENCE: liked, REGIONS: parts, EDIT: edit, TRAIN_DISTILLED: assisted, HEALTH: bars, SLIDER: slider}
PLAIN = {name: partial(scheme, name.split()[0]) for name in SCHEMES} | SPECIAL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loras", type=Path, nargs="?", help="the folder with heart, arrow and merged")
    parser.add_argument("--out", type=Path, default=ROOT / "workflows")
    choices = parser.parse_args()
    for name, draw in PLAIN.items():
        draw().save(choices.out / f"{name}.jpg", quality=75, optimize=True)
    if choices.loras is None:
        return
    with ComfyServer() as server:
        shutil.copytree(choices.loras, server.base / "models" / "loras" / FOLDER)
        workflow = api_graph(server, STACK)
        there = {path.stem for path in choices.loras.iterdir()}
        for name, of in CARDS.items():
            if not {*of.left.loras, *of.right.loras} <= there:
                continue
            pictures = [drawn(server, workflow, half) for half in (of.left, of.right)]
            card(of, pictures).save(choices.out / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
