"""Measures what LoRA Slider teaches: a slider of the ground from black to white, and one of the shape from blue to red,
on the demo base.

Each is learned from two subjects with everything on auto, also with five other prompts preserved. Beside that, an
ordinary LoRA learns the pictures that the base draws of *more*, captioned as the subjects, in as many steps, and a
slider learns pairs of these and what the base draws of *less* from the same seeds. All are used at strengths -2 to 2 on
four held-out prompts, drawn with KSampler at CFG 3, and what the slider is for is measured in the pictures: their
brightness, or how much redder than blue they are.

`range`: from strength -2 to 2, as a share of what the base makes of the prompts of less and more themselves. `within`:
the share of it that lies between -1 and 1; 0.5 where all steps are alike. `even`: the smallest step between
neighbouring strengths over the largest. `symmetric`: the shorter way from 0 to a strength and to its opposite over the
longer. `change`: how far unrelated prompts move at 1 and -1, the mean (0..255). What they are made of is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
import torch
from _measure import arguments, begin, table
from benchmarks import _part
from benchmarks._concepts import PX
from benchmarks._exam import GUIDANCE, STEPS
from benchmarks._learners import Base, File, load_base
from benchmarks._slider_page import OURS, PAIRS, ROWS, STORED, lines, page
from comfy_extras.nodes_train import LoraModelLoader
from harness.calls import encode, run_node
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.slider import LoraSlider
from lora_loom.nodes.train_lora import TrainLora
from torch import Tensor

import nodes

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
UNRELATED = (
    "a yellow cross on a striped green background", "a dotted pink square on a black background",
    "a white ring on a blue background", "a black hexagon on a yellow background",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One slider: its subjects, more and less, held-out prompts with a hole, and which channels weigh how much."""

    subjects: tuple[str, ...]
    more: str
    less: str
    held: tuple[str, ...]
    channels: tuple[float, float, float]


WAYS: Mapping[str, Way] = {
    "ground": Way(
        ("a red star on a {} background", "a green ring on a {} background"), "white", "black",
        tuple(f"a {shape} on a {{}} background" for shape in ("red square", "blue bar", "green bar", "pink cross")),
        (1 / 3, 1 / 3, 1 / 3),
    ),
    "colour": Way(
        ("a {} star on a white background", "a {} ring on a gray background"), "red", "blue",
        tuple(f"a {{}} {shape} on a white background" for shape in ("square", "triangle", "diamond", "bar")),
        (1, 0, -1),
    ),
}  # fmt: skip


@torch.inference_mode()
def drawn(base: Base, model: Any, prompts: Sequence[str]) -> Tensor:
    """[prompts, h, w, 3], each from a seed of its own."""
    made = []
    for number, prompt in enumerate(prompts):
        (blank,) = nodes.EmptyLatentImage().generate(PX, PX)
        told = encode(base.clip, prompt), encode(base.clip, "")
        (out,) = nodes.KSampler().sample(model, 100 + number, STEPS, GUIDANCE, "euler", "simple", *told, blank)
        made.append(nodes.VAEDecode().decode(base.vae, out)[0].reshape(PX, PX, 3))
    return torch.stack(made)


def learned(base: Base, way: Way, row: str, seed: int, steps: int) -> File:
    given = dict(model=base.model, clip=base.clip, vae=base.vae)
    subject = "\n".join(way.subjects)
    drawing = dict(seed=1, steps=STEPS, cfg=GUIDANCE, scheduler="simple", resolution=PX, pictures=8)
    kept = {}
    if row in OURS:
        guidance, prompts = OURS[row]
        kept = dict(preserve=prompts, preservation=1.0) if prompts else {}
        asked = dict(more=way.more, less=way.less, subject=subject, guidance=guidance)
        data = run_node(LoraSlider, **given, **asked, **drawing)[0]
    else:
        data = pictures(base, way, way.more)
        if row == PAIRS:
            sides = dict(more_pictures=data, less_pictures=pictures(base, way, way.less))
            data = run_node(LoraSlider, **given, more="", less="", subject="", guidance=0.5, **drawing, **sides)[0]
    auto = dict(alpha=0.0, learning_rate=0.0, targets="auto", accumulation=1, batch_size=1, rank=8)
    run = dict(run_name="slider", resume="start over", gradient_checkpointing=False, steps=steps, seed=seed)
    return run_node(TrainLora, **given, dataset=data, **auto, **run, **kept)[0]


def pictures(base: Base, way: Way, word: str) -> Any:
    """What the base draws of the subjects with that word, captioned without it."""
    texts = [way.subjects[number % 2] for number in range(8)]
    images = drawn(base, base.model, [text.format(word) for text in texts])
    captions = "\n".join(" ".join(text.format("").split()) for text in texts)
    same = dict(folder="", trigger="", resolution=PX, repeats=1)
    return run_node(LoraDataset, **same, images=images, captions=captions)[0]


def measured(base: Base, way: Way, file: File) -> dict[str, Any]:
    """Where pictures are at each strength and by the prompts of less and of more, and how far unrelated ones move."""
    shown, plain = [" ".join(text.format("").split()) for text in way.held], drawn(base, base.model, UNRELATED)
    weights, places, moved = torch.tensor(way.channels), [], []

    def value(model: Any, prompts: Sequence[str]) -> float:
        return float((drawn(base, model, prompts) * weights).sum(-1).mean())

    for strength in STRENGTHS:
        model = base.model
        if strength:
            (model,) = run_node(LoraModelLoader, model=model, lora=file, strength_model=strength)
        places.append(value(model, shown))
        if abs(strength) == 1:
            moved.append(255 * float((drawn(base, model, UNRELATED) - plain).abs().mean()))
    ends = [value(base.model, [text.format(word) for text in way.held]) for word in (way.less, way.more)]
    return {"places": places, "ends": ends, "moved": moved}


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--steps", type=int, default=200, help="of every run (%(default)s)")
    parser.add_argument("--into", type=Path, default=STORED, metavar="FILE", help="where results are written to")
    parser.add_argument("--write", action="store_true", help="write docs/figures.md from what is stored; runs nothing")
    options = begin(parser)
    if options.write:
        return _part.publish(page())
    base, found = load_base(), _part.read(options.into)
    for seed in range(options.rounds):
        for name, way in WAYS.items():
            for row in ROWS:
                key = {"slider": name, "row": row, "seed": seed}
                if any(key.items() <= each.items() for each in found):
                    continue
                found.append(key | {"found": measured(base, way, learned(base, way, row, seed, options.steps))})
                _part.add(options.into, found[-1])
    table("sliders on the demo base", *lines(found))


if __name__ == "__main__":
    main()
