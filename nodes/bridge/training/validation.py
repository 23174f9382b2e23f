"""A run that is watched: what its steps tell is recorded, validation is done when it is due, and the best LoRA kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any, cast

import comfy.model_management
import torch
from comfy.quant_ops import QuantizedTensor
from PIL import Image
from torch import Tensor, nn

from ....lora_core.adapter import Adapter
from ....lora_core.drawing.plot import Marks
from ....lora_core.files import formats, save
from ....lora_core.files.label import redacted
from ....lora_core.ranks.group import here
from ....lora_core.training import charts, guided, norms, validation
from ....lora_core.training.config import Recipe, TrainConfig, Validation
from ....lora_core.training.judgement import Verdict, judge, judge_training
from ....lora_core.training.objective import Denoiser
from ....lora_core.training.record import Point, Record
from ....lora_core.training.report import Story, report
from ....lora_core.training.state import TrainState
from ....lora_core.training.steps import StepResult
from ....lora_core.training.strengths import Scale, StrengthCurve
from ....lora_core.training.targets import weight_shape
from ....lora_core.training.tasks import PICTURES, Task
from ....lora_core.training.trainer import Sample
from ....lora_core.training.validation import Draw, Look, Pictures, joined
from ..host.lora_files import read_lora
from ..host.ranks import by_first, on_every
from . import strength

log = logging.getLogger("lora_loom")
_MOST_READ = 1 << 20  # values of a weight, for its norm


class Watch:
    """Watches a run between its steps; what `over` does then never touches the run's generator or its factors."""

    def __init__(
        self, recipe: Recipe, pictures: Pictures, state: TrainState, denoiser: Denoiser, samples: list[Sample],
        weights: Mapping[str, float], folder: Path,
        describe: Callable[[], Adapter], label: Callable[[Adapter, int], Adapter], enters: Callable[[str], None],
        cfg: float, neutral: Sequence[tuple[int, Any]], suggests: Callable[[StrengthCurve], None],
        task: Task = PICTURES,
    ):  # fmt: skip
        self.config: TrainConfig = recipe.train
        self.task = task
        self.chosen, self.pictures, self.state, self.denoiser = recipe.validation, pictures, state, denoiser
        self.samples, self.weights, self.describe, self.label = samples, weights, describe, label
        self.enters, self.cfg, self.neutral, self.suggests = enters, cfg, neutral, suggests
        self.curve: StrengthCurve | None = None
        self.strength = self.said = ""  # what the report says of it, and of the LoRA
        self.path = folder / "best.safetensors"
        self.best: tuple[int, Adapter] | None = None  # step and LoRA, when the disk does not take it
        digests = [example.digest for example in pictures.dataset.examples]
        self.draws = (
            validation.plan(
                pictures.looked_at,
                digests,
                self.config,
                self.chosen,
                lambda i: denoiser.tokens(task.shown(samples[i].latent[None]).shape),
            )
            if self.chosen
            else []
        )
        self.answers = guided.plan(self.draws) if task.draws else []
        self.seconds, self.started = 0.0, time.monotonic()
        key = validation.key(self.draws) if self.draws else ""
        if state.record.key != key:
            state.record.key, state.record.base, state.record.points, state.record.guided = key, [], [], {}

    def over(self, results: Iterable[StepResult]) -> Iterator[StepResult]:
        """The results of `train`, up to where the run is ended; the network is to be attached."""
        if self._looked():
            return
        for result in results:
            if self.state.record.take(result, self.config.steps):
                sizes = norms.correction_norms(self.state.factors)
                self.state.record.windows[-1].sizes = norms.relative(sizes, self.weights)
            ended = self._looked()
            yield result
            if ended:
                return

    def marks(self) -> Marks:
        return charts.marks(self.state.record, self.state.record.best())

    def verdict(self) -> Verdict:
        record, chosen = self.state.record, self.chosen
        if not chosen:
            return judge_training(record)
        return judge(record, [draw.picture for draw in self.draws], chosen.patience, bool(chosen.held_out))

    def result(self) -> Adapter:
        """Return the LoRA that comes out: that of the last step, or of the best validation."""
        if not self.chosen or self.chosen.keep == "last":
            return self.describe()
        step = self.state.record.best()
        if step in (None, self.state.step):
            return self.describe()
        if self.best and self.best[0] == step:
            return self.best[1]
        kept = self._read()
        if kept is None or kept.metadata.get("ss_steps") != str(step):
            log.warning("%s is not from step %s; the LoRA of the last step is returned", self.path.name, step)
            return self.describe()
        return self.label(replace(kept.copied(torch.float32), metadata={}), step)

    def _read(self) -> Adapter | None:
        try:
            return read_lora(self.path)
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read: %s", self.path, error)
            return None

    def story(self, notes: Iterable[str] = ()) -> Story:
        sizes = norms.correction_norms(self.state.factors)
        names = [Path(example.source).name for example in self.pictures.dataset.examples]
        return Story(
            self.state.record, self.verdict(), self.state.losses, self.config.steps, names,
            drawn=[(draw.u, draw.picture) for draw in self.draws],
            held_out=bool(self.chosen and self.chosen.held_out), layers=norms.largest(sizes, self.weights),
            cost=(self.seconds, time.monotonic() - self.started), notes=tuple(notes), strength=self.curve,
        )  # fmt: skip

    def report_and_charts(self, *notes: str) -> tuple[str, Image.Image]:
        """Return the report, with the notes, and the charts."""
        story = self.story(list(filter(None, (*notes, *self._went_back(), self.said, self.strength))))
        examples = self.pictures.dataset.examples
        shown = {index: Image.fromarray(examples[index].origin.thumbnail.numpy()) for index, _ in story.pictures()}
        return report(story), charts.draw_charts(story, shown)

    def _went_back(self) -> list[str]:
        if self.state.health.rate == 1:
            return []
        used = self.config.learning_rate * self.state.health.rate
        return [
            f"The learning rate {self.config.learning_rate:g} was too high: the run went back once and continued with "
            f"{used:g}. Next time choose {used:g} or less."
        ]

    def _looked(self) -> bool:
        """Validate when it is due, and measure the strength at the end; True when the run is to end here."""
        ended = self._validated()
        if self.chosen and (ended or self.state.step == self.config.steps):
            self._measure_strength(self.chosen)
            if self.curve is not None:
                self.suggests(self.curve)
            self.said = self._says()
        return ended

    def _says(self) -> str:
        """Return what the task says of the LoRA at its end; nothing where it was never validated."""
        points, factors = self.state.record.points, self.state.factors
        if not points:
            return ""

        def measure(losses: Callable[..., Tensor]) -> list[float]:
            return self._found(self.draws, False, partial(validation.looked, losses, self.task.shown, factors))

        return self.task.says(factors, [draw.picture for draw in self.draws], points[-1].losses, measure)

    def _measure_strength(self, chosen: Validation) -> None:
        """By the first rank, while others wait: what comes of it is in the header, which no other writes."""
        self.enters("measuring the strength")
        tick, started = comfy.model_management.throw_exception_if_processing_interrupted, time.monotonic()
        scale = Scale(self.config, self.state, self.denoiser, self.samples, self.cfg, tick)

        def measure() -> None:
            self.curve, self.strength = strength.measured(self.task, scale, chosen, self.draws, self.neutral)

        by_first(measure)
        self.seconds += time.monotonic() - started

    def _validated(self) -> bool:
        record, step = self.state.record, self.state.step
        if not self.chosen:
            return False
        if not record.base:
            record.base, record.guided = self._measured(0)
        due = step == self.config.steps or step % self.chosen.every == 0
        if due and step and (not record.points or record.points[-1].step < step):
            losses, found = self._measured(step)
            record.points.append(Point(step, losses))
            record.guided |= found
            log.info("step %s: %s", step, _in_words(record))
            if record.best() == step and here().first:
                self._keep()
        return self.chosen.early_stop and self.verdict().stop

    def _measured(self, step: int) -> tuple[list[float], dict[str, list[float]]]:
        """Losses, and errors of the guided answer by step as a record has them; of the untouched model at step 0. A run
        that was begun without the latter goes on without it."""
        self.enters("validating")
        base = not step
        losses = self._found(self.draws, base)
        if not self.answers or (step and not self.state.record.guided):
            return losses, {}
        look = partial(
            guided.errors, cfg=self.cfg, tick=comfy.model_management.throw_exception_if_processing_interrupted
        )
        return losses, {str(step): self._found(self.answers, base, look)}

    def _found(self, draws: list[Draw], base: bool, look: Look | None = None) -> list[float]:
        """Return the loss of each draw, or what `look` finds in it; `base`: of the untouched model."""
        tick, started = comfy.model_management.throw_exception_if_processing_interrupted, time.monotonic()
        of = self.config, self.state, self.denoiser, self.samples, base, tick
        try:
            return joined(on_every(lambda: validation.measure(draws, *of, look, here(), self.task)))
        finally:
            self.seconds += time.monotonic() - started

    def _keep(self) -> None:
        """In the folder, or else in memory."""
        adapter, self.best = self.describe(), None
        tensors = formats.encode(adapter, "native", dtype=torch.float32)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save.save(self.path, tensors, redacted(adapter.metadata), overwrite=True)
        except OSError as error:
            log.warning("%s was not written: %s", self.path, error.strerror or error)
            self.best = self.state.step, adapter


def _in_words(record: Record) -> str:
    answers, step = record.answers(), record.points[-1].step
    told = f"validation loss {record.points[-1].mean:.4f} (base model {sum(record.base) / len(record.base):.4f})"
    return told + (f", guided answer {answers[step]:.4f} ({answers[0]:.4f})" if answers else "")


@torch.no_grad()
def weight_norms(layers: Mapping[str, nn.Module]) -> dict[str, float]:
    """Frobenius norm of each layer's weight, of large ones estimated from evenly spaced rows; without those in a form
    that only their loader can read."""
    found = {}
    for name, module in layers.items():
        weight = cast(Tensor, module.weight)
        weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        if type(weight) in (Tensor, nn.Parameter) and tuple(weight.shape) == weight_shape(module):
            rows = weight[:: max(weight.numel() // _MOST_READ, 1)]
            found[name] = float(rows.float().norm()) * sqrt(len(weight) / len(rows))
    return found
