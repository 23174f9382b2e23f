"""Measures what LoRA Preference Pairs teaches: pairs of a large and a small shape, on the demo base.

A pair is a plain shape of the base's language drawn large (liked) and small (disliked), with one caption that says
nothing of size. 32 pairs are learned in as many steps as `--steps`, at equal pictures in each, with Train LoRA on auto:
as pairs at several beta, and, beside that, the liked pictures alone as an ordinary data set.

`win rate` is that of 32 held-out pairs, by losses of the velocity at fixed noise and 8 levels spread evenly. `size` is
how much of a drawn picture the shape covers, over that of the base's picture for the same prompt and seed; `clean`
how much of the picture is within 0.15 (RGB, Euclidean) of one of the two colours that the caption names; both of 24
held-out prompts drawn with KSampler at guidance 3. `liked` is the loss of the held-out liked pictures, over the base's.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
import comfy.model_management
import torch
from _measure import arguments, begin, table
from benchmarks._concepts import PX
from benchmarks._exam import GUIDANCE, LEVELS, STEPS, texts
from benchmarks._learners import Base, File, encoded, load_base
from benchmarks._publish import FIGURES, markdown
from comfy_extras.nodes_train import LoraModelLoader
from demo import shapes
from demo.shapes import Scene
from harness.calls import encode, run_node
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.preference_pairs import PreferencePairs
from lora_loom.nodes.train_lora import TrainLora
from torch import Tensor

import nodes

STORED = Path(__file__).parent / "results" / "preference.jsonl"
MARKS = "<!-- preference: written by `dev.py bench preference --write` -->\n", "<!-- /preference -->\n"
LARGE, SMALL = 0.72, 0.55
LEARNED, HELD, PROMPTS = 32, 32, 24
BASE, LIKED = "base", "the liked pictures alone"
ROWS: Mapping[str, float] = {LIKED: 0.0, **{f"pairs, beta {beta}": float(beta) for beta in (500, 2000, 8000)}}
COLUMNS = {"wins": ("win rate, %", 0), "size": ("size", 2), "clean": ("clean, %", 1), "liked": ("liked", 3)}


def scenes(seed: str, count: int) -> list[Scene]:
    rng, found = random.Random(seed), []
    while len(found) < count:
        scene = shapes.random_scene(rng)
        found += [scene] if not (scene.pattern or scene.fill) else []
    return found


def sized(scene: Scene) -> tuple[Tensor, Tensor]:
    return tuple(shapes.draw(replace(scene, size=size), PX, PX) for size in (LARGE, SMALL))


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
        liked, disliked = zip(*map(sized, held), strict=True)
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


def written(folder: Path) -> tuple[Any, Any]:
    """The two data sets."""
    sides = folder / "liked", folder / "disliked"
    for side in sides:
        side.mkdir()
    for number, scene in enumerate(scenes("training", LEARNED)):
        for side, picture in zip(sides, sized(scene), strict=True):
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


def measure(into: Path, steps: int, seeds: int) -> None:
    base = load_base()
    exam = Exam.of(base)
    with tempfile.TemporaryDirectory() as folder:
        sets = written(Path(folder))
        jobs = [(BASE, 0.0, 0), *((row, beta, seed) for seed in range(seeds) for row, beta in ROWS.items())]
        for row, beta, seed in jobs:
            if any((each["row"], each["seed"], each["steps"]) == (row, seed, steps) for each in read(into)):
                continue
            figures = exam.figures(None if row == BASE else learned(base, sets, beta, seed, steps))
            line = {"row": row, "seed": seed, "steps": steps, "figures": {k: round(v, 4) for k, v in figures.items()}}
            with into.open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
            print(f"  {row}, seed {seed}: {line['figures']}", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()] if path.exists() else []


def lines(found: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    """Means, with the least and the most of the seeds."""
    rows = []
    for name in (BASE, *ROWS):
        runs = [each["figures"] for each in found if each["row"] == name]
        if runs:
            cells = [_cell([run[key] for run in runs], digits) for key, (_, digits) in COLUMNS.items()]
            rows.append([name, str(len(runs)) if name != BASE else "", *cells])
    return ("", "seeds", *(title for title, _ in COLUMNS.values())), rows


def _cell(values: Sequence[float], digits: int) -> str:
    spread = f" [{min(values):.{digits}f}..{max(values):.{digits}f}]" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def publish(stored: Path, page: Path) -> None:
    before, _, rest = page.read_text("utf-8").partition(MARKS[0])
    text = f"{before}{MARKS[0]}\n{markdown(*lines(read(stored)))}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"
    page.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=2)
    parser.add_argument("--steps", type=int, default=200, help="of every run (%(default)s)")
    parser.add_argument("--into", type=Path, metavar="FILE", default=STORED, help="where results are written to")
    parser.add_argument("--write", action="store_true", help="write docs/figures.md from what is stored")
    options = begin(parser)
    if options.write:
        return publish(STORED, FIGURES)
    measure(options.into, options.steps, 1 if options.quick else options.rounds)
    table("preference", *lines(read(options.into)))


if __name__ == "__main__":
    main()
