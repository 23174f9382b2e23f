"""Makes the templates' thumbnails: `python tests/e2e/build_thumbnails.py demo/loras`, after `python dev.py demo`.

Two pictures drawn by the demo's base and LoRAs, a word below each, and one large word: a card of the Templates dialog
is about 220 pixels wide, half of what is drawn here. Without demo/loras, those that need no pictures are made.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

import numpy as np  # noqa: E402
from demo import shapes  # noqa: E402
from demo.templates import FOLDER, PREFERENCE, SLIDER, STACK, api_graph  # noqa: E402
from harness.server import ComfyServer, Graph  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

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


BOTH = ("heart", "arrow")
DRAWN, SCHEMES = [*GRAPHS][:6], [*GRAPHS][6:8]  # with the demo's base, and what it cannot draw
CARDS = dict(zip(DRAWN, (
    Card("Train", "one checkpoint file", "#ffc247", Half("before", HEART, ()), Half("after", HEART, ("heart",))),
    Card("Train", "diffusion model", "#8fd14f", Half("before", ARROW, (), 103), Half("after", ARROW, ("arrow",), 103)),
    Card("Stack", "any number of LoRAs", "#5cb8ff", Half("heart +", HEART, BOTH), Half("arrow", ARROW, BOTH, 103)),
    Card("Merge", "many into one file", "#ff8a70", Half("2 files", HEART, BOTH, 104), Half("1 file", HEART, ("merged",), 104)),
    Card("Good?", "leaks, conflicts, copies", "#c79bff", Half("with", HEART, BOTH, 107), Half("without", HEART, ("arrow",), 107)),
    Card("Publish", "contract, test, signature", "#5fd6c4", Half("yours", HEART, ("heart",), 102), Half("signed", HEART, ("heart",), 108)),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loras", type=Path, nargs="?", help="the folder with heart, arrow and merged")
    parser.add_argument("--out", type=Path, default=ROOT / "workflows")
    choices = parser.parse_args()
    for name in SCHEMES:
        scheme(name.split()[0]).save(choices.out / f"{name}.jpg", quality=90)
    liked().save(choices.out / f"{PREFERENCE}.jpg", quality=90)
    slider().save(choices.out / f"{SLIDER}.jpg", quality=90)
    if choices.loras is None:
        return
    with ComfyServer() as server:
        shutil.copytree(choices.loras, server.base / "models" / "loras" / FOLDER)
        workflow = api_graph(server, STACK)
        for name, of in CARDS.items():
            pictures = [drawn(server, workflow, half) for half in (of.left, of.right)]
            card(of, pictures).save(choices.out / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
