"""Measures what LoRA Preference Pairs teaches: pairs of which the slightly larger shape is liked, on the demo base.

A pair is a plain shape of the base's language drawn a little larger (liked) and a little smaller (disliked) than a size
that is anywhere, with one caption that says nothing of it: liked pictures alone are as large as disliked ones nearly,
and only the pairs tell what is liked. 32 pairs are learned in as many steps as `--steps`, at equal pictures in each,
with Train LoRA on auto: as pairs at several beta, and, beside that, the liked pictures alone as an ordinary data set;
and the same again with a quarter of the pairs swapped, as people do not agree.

`win rate` is that of 32 held-out pairs, by losses of the velocity at fixed noise and 8 levels spread evenly. `size` is
how much of a drawn picture the shape covers, over that of the base's picture for the same prompt and seed; `clean`
how much of the picture is within 0.15 (RGB, Euclidean) of one of the two colours that the caption names; both of 24
held-out prompts drawn with KSampler at guidance 3. `liked` is the loss of the held-out liked pictures, over the base's.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
import comfy.model_management
import torch
from _measure import arguments, begin, table
from benchmarks import _part
from benchmarks._concepts import PX
from benchmarks._exam import GUIDANCE, LEVELS, STEPS, texts
from benchmarks._learners import Base, File, encoded, load_base
from benchmarks._preference_page import BASE, ROWS, STORED, lines, page
from comfy_extras.nodes_train import LoraModelLoader
from demo import shapes
from demo.shapes import Scene
from harness.calls import encode, run_node
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.preference_pairs import PreferencePairs
from lora_loom.nodes.train_lora import TrainLora
from torch import Tensor

import nodes

SIZES, APART = (0.45, 0.75), 0.08  # of a pair's middle, and of its pictures
LEARNED, HELD, PROMPTS = 32, 32, 24


def scenes(seed: str, count: int) -> list[Scene]:
    rng, found = random.Random(seed), []
    while len(found) < count:
        scene = shapes.random_scene(rng)
        found += [scene] if not (scene.pattern or scene.fill) else []
    return found


def sized(scene: Scene, number: int) -> tuple[Tensor, Tensor]:
    """The liked and the disliked picture: the larger and the smaller one of a pair whose middle is anywhere."""
    middle = random.Random(f"{number}").uniform(*SIZES)
    return tuple(shapes.draw(replace(scene, size=middle + apart / 2), PX, PX) for apart in (APART, -APART))


@dataclass(frozen=True)
class Exam:
    """Held-out pairs and prompts; everything random in it is fixed."""

    base: Base
    scenes: Sequence[Scene]
    latents: Tensor  # [2 pairs, ...], the liked ones first
    before: Tensor  # [2, pairs], losses of the base
    covered: float

    @classmethod
    def of(cls, base: Base) -> Exam:
        held = scenes("held out", HELD)
        liked, disliked = zip(*(sized(each, 1000 + number) for number, each in enumerate(held)), strict=True)
        latents = encoded(base.vae, torch.stack([*liked, *disliked]).movedim(1, -1))
        plain = cls(base, held, latents, torch.zeros(2, HELD), 1.0)
        own = replace(plain, before=plain._losses(base.model))
        return replace(own, covered=own._drawn(base.model)[0])

    def figures(self, file: File | None) -> dict[str, float]:
        model = self.base.model
        if file is not None:
            model = run_node(LoraModelLoader, model=model, lora=file, strength_model=1.0)[0]
        (covered, clean), losses = self._drawn(model), self._losses(model)
        liked, disliked = self.before - losses
        wins = float((liked > disliked).float().mean()) if file is not None else 0.5
        return {
            "wins": 100 * wins, "size": covered / self.covered, "clean": 100 * clean,
            "liked": float(losses[0].mean() / self.before[0].mean()),
        }  # fmt: skip

    @torch.inference_mode()
    def _losses(self, model: Any) -> Tensor:
        """Textbook flow matching: x_t = (1 - t) x0 + t noise, and the velocity against noise - x0."""
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network, draw = model.model, torch.Generator().manual_seed(13)
        x0 = network.process_latent_in(self.latents).to(model.load_device)
        told = texts(self.base, map(shapes.caption, self.scenes)).repeat(2, 1, 1).to(x0)
        total = torch.zeros(len(x0))
        for number in range(LEVELS):
            level = (number + 0.5) / LEVELS
            noise = torch.randn(x0[:HELD].shape, generator=draw).repeat(2, *[1] * (x0.ndim - 1)).to(x0)
            x_t = torch.lerp(x0, noise, level)
            t = torch.full((len(x0),), level).to(x0)
            velocity = (x_t - network.apply_model(x_t, t, c_crossattn=told)) / level
            total += (velocity - (noise - x0)).square().flatten(1).mean(1).cpu()
        return total.view(2, HELD)

    @torch.inference_mode()
    def _drawn(self, model: Any) -> tuple[float, float]:
        """How much of the drawn pictures the shape covers, and how much of them is of the two colours, in 0..1."""
        asked = self.scenes[:PROMPTS]
        blank = nodes.EmptyLatentImage().generate(PX, PX, len(asked))[0]
        told, empty = [[texts(self.base, map(shapes.caption, asked)), {}]], encode(self.base.clip, "")
        (out,) = nodes.KSampler().sample(model, 5, STEPS, GUIDANCE, "euler", "simple", told, empty, blank)
        images = nodes.VAEDecode().decode(self.base.vae, out)[0].reshape(len(asked), PX, PX, 3)
        colours = [[shapes.COLOURS[name] for name in (scene.colour, scene.background)] for scene in asked]
        far = (images[:, None] - torch.tensor(colours)[:, :, None, None]).norm(dim=-1)
        return float((far[:, 0] < far[:, 1]).float().mean()), float((far.amin(1) < 0.15).float().mean())


def written(folder: Path, swapped: bool) -> tuple[Any, Any]:
    """The two data sets, each fourth pair swapped if so."""
    folder.mkdir()
    sides = folder / "liked", folder / "disliked"
    for side in sides:
        side.mkdir()
    for number, scene in enumerate(scenes("training", LEARNED)):
        order = reversed(sides) if swapped and not number % 4 else sides
        for side, picture in zip(order, sized(scene, number), strict=True):
            shapes.write_png(picture, side / f"{number:03d}.png")
            (side / f"{number:03d}.txt").write_text(shapes.caption(scene), encoding="ascii")
    read = [run_node(LoraDataset, folder=str(side), trigger="", resolution=PX, repeats=1)[0] for side in sides]
    return read[0], read[1]


def learned(base: Base, sets: tuple[Any, Any], beta: float, seed: int, steps: int) -> File:
    """Two pictures in each step: a pair, or two liked ones."""
    data = run_node(PreferencePairs, liked=sets[0], disliked=sets[1], beta=beta)[0] if beta else sets[0]
    auto = dict(alpha=0.0, learning_rate=0.0, targets="auto", accumulation=1, rank=8)
    own = dict(steps=steps, batch_size=1 if beta else 2, seed=seed, dataset=data)
    run = dict(run_name="prefer", resume="start over", gradient_checkpointing=False)
    return run_node(TrainLora, model=base.model, clip=base.clip, vae=base.vae, **auto, **own, **run)[0]


def measure(into: Path, steps: int, seeds: Sequence[int]) -> None:
    base = load_base()
    exam = Exam.of(base)
    with tempfile.TemporaryDirectory() as folder:
        sets = {swapped: written(Path(folder) / str(swapped), swapped) for swapped in (False, True)}
        jobs = [(BASE, 0.0, False, 0), *((row, *own, seed) for seed in seeds for row, own in ROWS.items())]
        for row, beta, swapped, seed in jobs:
            if any((each["row"], each["seed"], each["steps"]) == (row, seed, steps) for each in _part.read(into)):
                continue
            figures = exam.figures(None if row == BASE else learned(base, sets[swapped], beta, seed, steps))
            line = {"row": row, "seed": seed, "steps": steps, "figures": {k: round(v, 4) for k, v in figures.items()}}
            _part.add(into, line)
            print(f"  {row}, seed {seed}: {line['figures']}", flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of every run (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs (%(default)s)")
    parser.add_argument("--into", type=Path, metavar="FILE", default=STORED, help="where results are written to")
    parser.add_argument("--write", action="store_true", help="write docs/figures.md from what is stored")
    options = begin(parser)
    if options.write:
        return _part.publish(page())
    measure(options.into, options.steps, options.seeds[: 1 if options.quick else None])
    table("preference", *lines(_part.read(options.into)))


if __name__ == "__main__":
    main()
