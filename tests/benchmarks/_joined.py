"""Two concepts in one LoRA: `dev.py bench learn --joined`.

Every pair is learned in one run of 400 steps from both sets of 16 pictures, kept apart or not, and, beside that, in one
run each of 200 steps. Of 12 held-out prompts for each concept, drawn with KSampler at guidance 3: the `overlap` of what
is drawn with the true concept, under its own trigger, with the other's in its place, and with none; what a LoRA draws
under the other's trigger beyond the base is bleeding. `class` and `unrelated` as in `learn`. `told` is what the report
of Train LoRA calls bleeding, here by all 16 held-out pictures: the gain in loss under the other's trigger, and under
none, over that under the own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import comfy.model_management
import torch
from _measure import table
from benchmarks import _part
from benchmarks._concepts import CONCEPTS, Concept
from benchmarks._exam import PICTURES, PROMPTS, Exam, Neutral, texts
from benchmarks._joined_page import APART, BASE, EACH, JOINED, LOUD, NATIVE, PAIRS, STORED, lines, page
from benchmarks._judge import judge
from benchmarks._learners import Base, File, Task, load_base, native, ours
from benchmarks._rows import AS_IN_0_1_0
from comfy_extras.nodes_train import LoraModelLoader
from demo import shapes
from harness.calls import run_node
from lora_loom.lora_core.data.prompts import without_trigger
from lora_loom.nodes.combine_datasets import CombineDatasets

_LEVELS = (0.82, 0.88, 0.94, 0.985)  # of noise, where it is open what a picture shows
_OF = {concept.word: concept for concept in CONCEPTS}
Figures = dict[str, float]


@dataclass(frozen=True)
class Question:
    """One concept beside another: its exam, and its prompts in three forms."""

    exam: Exam
    prompts: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, base: Base, neutral: Neutral, concept: Concept, other: Concept) -> Question:
        exam = Exam(base, neutral, concept)
        own = [shapes.caption(scene) for scene in exam.scenes]
        swapped = [text.replace(concept.word, other.word) for text in own]
        return cls(exam, {"own": own, "other": swapped, "none": [without_trigger(text, concept.word) for text in own]})

    def figures(self, model: Any, marks: Figures) -> Figures:
        """`marks` hold what is known of the base."""
        exam = self.exam
        drawn = {
            form: exam.drawn(model, texts(exam.base, asked[:PROMPTS]))
            for form, asked in self.prompts.items()
            if form != "own"
        }
        found: Figures = {
            form: mean(judge(i, s, exam.concept).overlap for i, s in zip(images, exam.scenes, strict=False))
            for form, images in drawn.items()
        }
        losses = {form: self._loss(model, asked) for form, asked in self.prompts.items()}
        if marks:
            gain = {form: marks[f"loss_{form}"] - loss for form, loss in losses.items()}
            found |= {f"told_{form}": gain[form] / gain["own"] for form in ("other", "none")}
        return found | {f"loss_{form}": loss for form, loss in losses.items()}

    @torch.inference_mode()
    def _loss(self, model: Any, asked: Sequence[str]) -> float:
        """Of the velocity, on held-out pictures of the concept under these captions."""
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network, total, draw = model.model, 0.0, torch.Generator().manual_seed(5)
        x0 = network.process_latent_in(self.exam.latents[:PICTURES]).to(model.load_device)
        told = texts(self.exam.base, asked).to(x0)
        for level in _LEVELS:
            t = torch.full((len(x0),), level).to(x0)
            noise = torch.randn(x0.shape, generator=draw).to(x0)
            x_t = torch.lerp(x0, noise, level)
            velocity = (x_t - network.apply_model(x_t, t, c_crossattn=told)) / level
            total += float((velocity - (noise - x0)).square().mean())
        return total / len(_LEVELS)


class Joined:
    """Learns pairs and examines them; each line is written as it comes, and none is measured twice."""

    def __init__(self, base: Base, folder: Path, into: Path, batch: int, rank: int):
        self.base, self.folder, self.into, self.batch, self.rank = base, folder, into, batch, rank
        self.neutral = Neutral.of(base)
        self.asked, self.task = cache(self._asked), cache(self._task)

    def run(self, row: str, pair: tuple[str, str], seed: int) -> None:
        if any((each["row"], tuple(each["pair"]), each["seed"]) == (row, pair, seed) for each in _part.read(self.into)):
            return
        torch.manual_seed(seed)
        files = LEARNERS[row](self, pair, seed)
        found = [self._figures(one, other, file) for one, other, file in zip(pair, pair[::-1], files, strict=True)]
        line = {"row": row, "pair": list(pair), "seed": seed, "figures": dict(zip(pair, found, strict=True))}
        _part.add(self.into, line)
        print(f"  {' + '.join(pair)}, {row}, seed {seed}: overlap {mean(f['overlap'] for f in found):.2f}", flush=True)

    def _figures(self, one: str, other: str, file: File | None) -> Figures:
        asked = self.asked(one, other)
        if file is None:
            marks = asked.exam.references()[BASE]
            return _rounded(vars(marks) | asked.figures(self.base.model, {}))
        known = next(
            each for each in _part.read(self.into) if each["row"] == BASE and set(each["pair"]) == {one, other}
        )
        model = run_node(LoraModelLoader, model=self.base.model, lora=file, strength_model=1.0)[0]
        return _rounded(vars(asked.exam.marks(file)) | asked.figures(model, known["figures"][one]))

    def _asked(self, one: str, other: str) -> Question:
        return Question.of(self.base, self.neutral, _OF[one], _OF[other])

    def _task(self, word: str) -> Task:
        return Task.of(self.base, _OF[word], self.folder / word, 200, self.batch, self.rank)

    def both(self, pair: tuple[str, str], apart: bool = False) -> Task:
        """Return the joined set, with as many steps for each picture as alone."""
        one, other = map(self.task, pair)
        sets = {"dataset0": one.dataset, "dataset1": other.dataset}
        data = run_node(CombineDatasets, datasets=sets, keep_apart=apart)[0]
        pixels, captions = torch.cat([one.pixels, other.pixels]), one.captions + other.captions
        return Task(self.base, data, pixels, captions, "", 2 * one.steps, self.batch, self.rank)


def _together(
    learn: Callable[..., File], settings: Mapping[str, Any], apart: bool = False
) -> Callable[..., list[File]]:
    return lambda bench, pair, seed: [learn(bench.both(pair, apart), seed, settings)] * 2


LEARNERS: dict[str, Callable[[Joined, tuple[str, str], int], list[File | None]]] = {
    BASE: lambda bench, pair, seed: [None, None],
    EACH: lambda bench, pair, seed: [ours(bench.task(word), seed, {}) for word in pair],
    APART: _together(ours, {}, apart=True),
    JOINED: _together(ours, {}),
    LOUD: _together(ours, AS_IN_0_1_0),
    NATIVE: _together(native, {}),
}


def measure(base: Base, folder: Path, into: Path, batch: int, rank: int, seeds: int) -> None:
    bench = Joined(base, folder, into, batch, rank)
    for pair in PAIRS:
        bench.run(BASE, pair, 0)
        for seed in range(seeds):
            for row in list(LEARNERS)[1:]:
                bench.run(row, pair, seed)


def _rounded(figures: Figures) -> Figures:
    return {name: float(f"{value:.4g}") for name, value in figures.items() if value == value}


def show(path: Path) -> None:
    for pair in PAIRS:
        table(" + ".join(pair), *lines(_part.read(path), pair))


def main(options: Any) -> None:
    """Take the options of `learn`: measure into a file, or write docs/figures.md from what is stored."""
    if options.write:
        return _part.publish(page())
    into = options.into or STORED
    if not options.stored:
        with tempfile.TemporaryDirectory() as folder:
            measure(
                load_base(), Path(folder), into, options.batch, options.rank, 1 if options.quick else options.rounds
            )
    show(options.stored[0] if options.stored else into)
