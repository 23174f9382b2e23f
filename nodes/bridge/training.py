"""Train an Adapter on a MODEL: encode, attach, step, and keep the run on disk whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import comfy.model_management
import torch
from PIL import Image

from ...lora_core.adapter import Adapter
from ...lora_core.files import formats, metadata
from ...lora_core.presets import AUTO, Choices, choose
from ...lora_core.training.batches import Batches
from ...lora_core.training.config import (
    OptimizerConfig,
    Recipe,
    TrainConfig,
)
from ...lora_core.training.curve import draw_curve
from ...lora_core.training.inject import Factors, attached
from ...lora_core.training.objective_config import TIMESTEP_LAWS
from ...lora_core.training.run_folder import RunFolder
from ...lora_core.training.start import Start
from ...lora_core.training.trainer import Sample, StepResult, TrainState, Trouble, make_optimizer, train
from . import preparing
from .denoiser import ComfyDenoiser
from .facts import run_facts
from .keys import family_of
from .memory import Job, Planner, UnforeseeableError
from .preparing import Run, Sources
from .previews import Previewer, check_previews
from .progress import Progress
from .runs import begun, tell
from .samples import make_samples
from .session import aside, loaded, trainable
from .start import chosen_layers, spoken_with
from .text import TextDenoiser
from .watch import Pictures, Watch, weight_norms
from .weights import ComfyFrozen

log = logging.getLogger("lora_loom")
TIMESTEPS = (AUTO, *TIMESTEP_LAWS)


@dataclass(frozen=True)
class Trained:
    adapter: Adapter
    losses: list[float]
    folder: Path
    report: str
    charts: Image.Image
    sheet: Image.Image | None = None  # of the last previews


def train_lora(sources: Sources, recipe: Recipe, run: Run) -> Trained:
    """Train to the recipe's last step, or go on from where a run with these very settings was cut off.

    Raises ValueError for anything wrong with the input before the first step.
    """
    pictures, hits = preparing.check(sources, recipe)
    check_previews(run.previews, sources.model, sources.vae, sources.dataset.trigger)
    config, text = recipe.train, sources.clip if recipe.text else None
    progress = Progress(config.steps, preparing.notes(sources, [run.note, *hits]))
    speaker, carried = (sources.clip, Adapter({})) if text else spoken_with(sources.model, sources.clip, sources.start)
    encoded, latents, priors = preparing.encode(sources, speaker, recipe, progress)
    facts = run_facts(sources, recipe, run, progress, pictures.shown())
    shown = preparing.shown(sources, speaker, recipe, run, progress)
    job = preparing.job(sources, recipe, encoded, latents, priors, shown)
    with _session(sources.model, text, job, run, progress) as patcher:
        encoders = text.patcher.model if text else None
        layers, kept_layers = chosen_layers(patcher.model.diffusion_model, encoders, recipe.lora, sources.start)
        base = preparing.digest(layers)
        identity = preparing.identity(recipe, sources, base, pictures)
        denoiser = TextDenoiser(patcher, text) if text else ComfyDenoiser(patcher)
        samples = make_samples(denoiser, sources.dataset, encoded, latents, priors, recipe.preserved)
        beside = {"start": sources.start, "kept": kept_layers, "frozen": ComfyFrozen()}
        factors = partial(Factors, layers, device=patcher.load_device, **beside)
        state = _fresh_state(factors, recipe, samples, pictures)
        adapter_now, label = partial(_adapter, state, carried, facts), partial(_labelled, facts)
        settings = preparing.settings(recipe, sources, base, pictures)
        with begun(run.name, identity, settings, state, run.start_over, progress) as kept:
            previewer = Previewer(shown, patcher, denoiser, state, kept.path, config.steps, progress)
            weights = weight_norms(layers)
            watch = Watch(recipe, pictures, state, denoiser, samples, weights, kept.path, adapter_now, label)
            with attached(state.factors.branches), kept.kept(state, adapter_now):
                previewer.begin(run.start_over)
                steps = train(config, state, denoiser, samples, partial(_trouble, progress, kept, previewer))
                for result in watch.over(steps):
                    kept.note(result)
                    _show(progress, result, config, state, watch)
                    if run.save_every and result.step % run.save_every == 0:
                        tell(progress, kept.try_save(state, adapter_now))
                    previewer.after()
            adapter, told = watch.result(), watch.told()
    progress.say(_summary(state, adapter, kept.path, told[0]))
    return Trained(adapter, list(state.losses), kept.path, *told, previewer.sheet)


@contextmanager
def _session(model, text, job: Job, run: Run, progress: Progress) -> Iterator:
    """Yield the loaded ModelPatcher to train, with the measures that fit what is free; what it needs is shown before.

    `text` is a CLIP that is trained along. Raises ValueError when the run would not fit.
    """
    with trainable(model) as patcher, aside(text and text.patcher) as encoders:
        measures, needed = run.measures, 0.0
        try:
            settled, line = Planner(patcher, text).settle(job, run.measures, run.automatic)
            measures, needed = settled.measures, settled.need.total - settled.need.weights
            progress.keep(line)
            log.info("%s: %s", run.name, line)
        except UnforeseeableError as reason:
            log.warning("what %s needs is not known before its first step: %s", run.name, reason)
        with loaded(patcher, measures, needed, encoders):
            yield patcher


def _fresh_state(make: Callable[..., Factors], recipe: Recipe, samples: list[Sample], pictures: Pictures) -> TrainState:
    lora, config = recipe.lora, recipe.train
    text_rank, text_rate = (recipe.text.rank, recipe.text.learning_rate) if recipe.text else (0, 0.0)
    generator = torch.Generator().manual_seed(config.seed)
    factors = make(lora.rank, lora.alpha, generator, text_rank, options=lora.options)
    shapes = [tuple(sample.latent.shape) for sample in samples]
    batches = Batches(shapes, config.batch_size, pictures.times(), generator)
    return TrainState(factors, batches, generator, make_optimizer(factors, config, text_rate))


def _trouble(progress: Progress, kept: RunFolder, previewer: Previewer, trouble: Trouble) -> None:
    kept.note(trouble)
    log.warning(trouble.text)
    if trouble.went_back:
        previewer.went_back()
        progress.keep(f"warning: {trouble.text}")
    comfy.model_management.throw_exception_if_processing_interrupted()


def _show(progress: Progress, result: StepResult, config: TrainConfig, state: TrainState, watch: Watch) -> None:
    picture = None
    if progress.picture_due() or result.step == config.steps:
        picture = draw_curve(state.losses, config.steps, marks=watch.marks())
        left = progress.time_left(result.step, config.steps)
        progress.say(f"step {result.step} of {config.steps}, loss {_recent(state.losses):.4f}, {left}")
    progress.update(result.step, picture=picture)
    comfy.model_management.throw_exception_if_processing_interrupted()


def _recent(losses: list[float], count: int = 50) -> float:
    tail = losses[-count:]
    return sum(tail) / len(tail)


def _summary(state: TrainState, adapter: Adapter, folder: Path, report: str) -> str:
    losses, dropped = state.losses, state.health.dropped
    tenth = max(len(losses) // 10, 1)
    return (
        f"{len(losses)} steps, loss {_recent(losses[:tenth]):.4f} -> {_recent(losses, tenth):.4f}; "
        f"{len(adapter.low_ranks())} layers, rank {adapter.rank()}, {adapter.num_parameters():,} parameters"
        f"{f'; {dropped} steps dropped, see log.jsonl' if dropped else ''}\n"
        f"{report.splitlines()[0]}\nkept in {folder}"
    )


def _adapter(state: TrainState, carried: Adapter, facts: metadata.Facts) -> Adapter:
    with state.judged():
        own = state.factors.adapter()
    adapter = Adapter({**own.layers, **carried.layers}, others={**own.others, **carried.others})
    return _labelled(facts, adapter, state.step)


def _labelled(facts: metadata.Facts, adapter: Adapter, step: int) -> Adapter:
    """With the header of what had come out at that step."""
    return replace(adapter, metadata=metadata.build(replace(facts, steps=step), adapter))


def choices(
    model, targets: str, rank: int, alpha: float, learning_rate: float, timesteps: str, shift: float,
    optimizer: OptimizerConfig, start: Start | None = None,
) -> Choices:  # fmt: skip
    """What to train with, where 0 and 'auto' stand for what suits this model's family, or for the rank of a LoRA to go
    on from."""
    rank = start.usual_rank() if start and not rank else rank
    return choose(family_of(model).preset_name, targets, rank, alpha, learning_rate, timesteps, shift, optimizer)


def as_lora_model(adapter: Adapter) -> dict[str, torch.Tensor]:
    """ComfyUI's LORA_MODEL: tensors under names that its own nodes load, alpha included."""
    return formats.encode(adapter, "native", dtype=torch.float32)
