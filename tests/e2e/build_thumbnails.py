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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from demo.templates import CONCEPTS, FOLDER, STACK, api_graph  # noqa: E402
from harness.server import ComfyServer, Graph  # noqa: E402
from PIL import Image  # noqa: E402

from e2e.template_graphs import GRAPHS  # noqa: E402
from e2e.thumbnail_cards import PLAIN, Card, Half, card  # noqa: E402

HEART, ARROW = "a yellow heart on a blue background", "a pink arrow on a striped green background"
BOTH, ONE = ("heart", "arrow"), ("concepts",)
DRAWN = [*[*GRAPHS][:6], CONCEPTS]  # with the demo's base
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
