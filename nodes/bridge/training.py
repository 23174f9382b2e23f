"""Train an Adapter on a MODEL: encode, attach, step, and keep the run on disk whatever happens."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from node_helpers import conditioning_set_values
from PIL import Image

from ...lora_core.adapter import Adapter
from ...lora_core.families import check_trainable
from ...lora_core.files import formats, metadata
from ...lora_core.presets import AUTO, Choices, choose
from ...lora_core.training.batches import Batches
from ...lora_core.training.config import (
    OptimizerConfig,
    Recipe,
    TrainConfig,
    fingerprint,
)
from ...lora_core.training.curve import draw_curve
from ...lora_core.training.dataset import Dataset, check_preservation
from ...lora_core.training.inject import Factors, attached
from ...lora_core.training.layers import counted
from ...lora_core.training.objective_config import TIMESTEP_LAWS
from ...lora_core.training.plan import Measures
from ...lora_core.training.run_folder import RunFolder
from ...lora_core.training.start import Start
from ...lora_core.training.targets import summary, weight_shape
from ...lora_core.training.trainer import Sample, StepResult, TrainState, Trouble, make_optimizer, train
from .cache import tidy
from .checks import check_conditioning, check_connected, check_objective, warnings
from .denoiser import ComfyDenoiser, prediction_type
from .encoding import check_sizes, encode_captions, encode_images
from .facts import run_facts
from .keys import family_of
from .memory import Job, Planner, UnforeseeableError
from .previews import Previewer, Previews, Shown, check_previews, prepared
from .prior import check_prior, encode_priors
from .progress import Progress
from .runs import begun, tell
from .samples import captions_to_encode, make_samples
from .session import aside, loaded, trainable
from .start import chosen_layers, spoken_with
from .text import TextDenoiser, check_text, tokenized, windows
from .watch import Pictures, Watch, weight_norms
from .weights import ComfyFrozen

log = logging.getLogger("lora_loom")
TIMESTEPS = (AUTO, *TIMESTEP_LAWS)


@dataclass(frozen=True)
class Run:
    """What does not change what is learned. `automatic` takes further `measures` when these do not fit into memory.
    `note` stays on the node.
    """

    name: str = "lora"
    save_every: int = 250
    measures: Measures = Measures()
    automatic: bool = True
    start_over: bool = False
    note: str = ""
    previews: Previews | None = None


@dataclass(frozen=True)
class Sources:
    """What is learned from. `prior_vae` is the stage C encoder, for Stable Cascade B only; `start` is a LoRA to go on
    from."""

    model: Any
    clip: Any
    vae: Any
    dataset: Dataset
    prior_vae: Any = None
    start: Start | None = None


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
    pictures, hits = _check(sources, recipe)
    check_previews(run.previews, sources.model, sources.vae, sources.dataset.trigger)
    config, text = recipe.train, sources.clip if recipe.text else None
    progress = Progress(config.steps, _notes(sources, [run.note, *hits]))
    speaker, carried = (sources.clip, Adapter({})) if text else spoken_with(sources.model, sources.clip, sources.start)
    encoded, latents, priors = _encode(sources, speaker, recipe, progress)
    facts = run_facts(sources, recipe, run, progress, pictures.shown())
    shown = _shown(sources, speaker, recipe, run, progress)
    job = _job(sources, recipe, encoded, latents, priors)
    with _session(sources.model, text, job, run, progress) as patcher:
        encoders = text.patcher.model if text else None
        layers, kept_layers = chosen_layers(patcher.model.diffusion_model, encoders, recipe.lora, sources.start)
        base = _digest(layers)
        identity = _identity(recipe, sources, base, pictures)
        denoiser = TextDenoiser(patcher, text) if text else ComfyDenoiser(patcher)
        samples = make_samples(denoiser, sources.dataset, encoded, latents, priors, recipe.preserved)
        beside = {"start": sources.start, "kept": kept_layers, "frozen": ComfyFrozen()}
        factors = partial(Factors, layers, device=patcher.load_device, **beside)
        state = _fresh_state(factors, recipe, samples, pictures)
        adapter_now, label = partial(_adapter, state, carried, facts), partial(_labelled, facts)
        settings = _settings(recipe, sources, base)
        if pictures.held:
            settings["dataset"]["held out"] = len(pictures.held)
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


def _check(sources: Sources, recipe: Recipe) -> tuple[Pictures, list[str]]:
    """Everything that can be known before anything is encoded; what is learned from and what is held out, and what is
    said of the LoRA to go on from and of each rule for single layers."""
    check_connected(sources.clip, sources.vae)
    check_trainable(type(sources.model.model.model_config).__name__)
    check_objective(recipe.train.objective, prediction_type(sources.model))
    if recipe.text:
        check_text(sources.model, sources.clip)
    encoders = sources.clip.patcher.model if recipe.text else None
    layers, _ = chosen_layers(sources.model.model.diffusion_model, encoders, recipe.lora, sources.start)
    check_preservation(sources.dataset, recipe.train.preservation, recipe.preserve)
    check_prior(sources.model, sources.vae, sources.prior_vae)
    check_sizes(sources.vae, sources.dataset)
    hits = counted(recipe.lora.options.rules, list(layers), summary(layers))
    begins = [sources.start.note(layers)] if sources.start else []
    return Pictures(sources.dataset, recipe), begins + hits


def _identity(recipe: Recipe, sources: Sources, base: str, pictures: Pictures) -> str:
    """Changes with everything that decides the resulting bytes."""
    choices = [recipe.lora, recipe.train, sources.dataset.fingerprint(), list(recipe.preserve), base]
    skip = sources.clip.layer_idx
    choices += [recipe.text, skip] if recipe.text or skip is not None else []
    choices += [sources.start.identity()] if sources.start else []
    return fingerprint(*choices, *([pictures.held] if pictures.held else []))


def _settings(recipe: Recipe, sources: Sources, base: str) -> dict[str, Any]:
    """What `_identity` tells apart, for people."""
    dataset, family = sources.dataset, family_of(sources.model).name
    skip = sources.clip.layer_idx
    text = asdict(recipe.text) if recipe.text else {}
    text |= {"clip_layer": skip} if recipe.text or skip is not None else {}
    data = {"pictures": dataset.num_pictures(), "px": dataset.resolution, "hash": dataset.fingerprint()}
    begins = {"continue_from": sources.start.described()} if sources.start else {}
    return {
        "lora": asdict(recipe.lora), "train": asdict(recipe.train), "text": text, "preserve": list(recipe.preserve),
        "dataset": data, "model": {"family": family, "hash": base}, **begins,
    }  # fmt: skip


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


def _job(sources: Sources, recipe: Recipe, encoded, latents, priors) -> Job:
    """The largest picture with the longest caption."""
    largest = max(range(len(latents)), key=lambda i: latents[i].numel())
    length = windows if recipe.text else torch.Tensor.numel
    caption = max(encoded, key=lambda caption: length(encoded[caption][0][0]))
    conditioning = conditioning_set_values(encoded[caption], priors[largest])
    shape, text_rank = tuple(latents[largest].shape), recipe.text.rank if recipe.text else 0
    resolution = sources.dataset.resolution
    return Job(recipe.lora, recipe.train, shape, conditioning, resolution, text_rank, sources.start)


def _encode(sources: Sources, clip, recipe: Recipe, progress: Progress):
    """CONDITIONING by `clip` of every caption that training needs (tokens for it when text encoders are trained), the
    latents of all views and their priors."""
    model, dataset = sources.model, sources.dataset

    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what}: {done} of {total}")

    captions = captions_to_encode(dataset, recipe.preserved)
    if recipe.text:
        encoded = tokenized(clip, captions)
    else:
        check = partial(check_conditioning, model)
        encoded = encode_captions(clip, captions, family_of(model).guidance, tick, check)
    latents = encode_images(sources.vae, model, dataset, tick)
    priors = encode_priors(sources.prior_vae, model, dataset, tick)
    tidy()
    return encoded, latents, priors


def _shown(sources: Sources, clip, recipe: Recipe, run: Run, progress: Progress) -> Shown | None:
    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what} of the previews: {done} of {total}")

    data, text = sources.dataset, recipe.text is not None
    triggers = tuple(dict.fromkeys(group.trigger for group in data.groups if group.trigger))
    return prepared(run.previews, clip, sources.vae, text, triggers, recipe.preserve, data.resolution, tick)


def _notes(sources: Sources, told: list[str]) -> list[str]:
    """The lines that stay on the node, empty ones left out; they are in the log too."""
    told, unwise = list(filter(None, told)), warnings(sources.model, sources.dataset)
    for text in told:
        log.info(text)
    for text in unwise:
        log.warning(text)
    return [*told, *unwise]


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


def _digest(layers) -> str:
    """Tells base models apart: a hash over the first values of every layer that is trained.

    Of a loaded MODEL only: before that its layers may hold the patches of whichever clone was used last.
    """
    digest = hashlib.sha256()
    for name, module in layers.items():
        stored = getattr(module.weight, "_qdata", module.weight).as_subclass(torch.Tensor)
        first = stored.detach().flatten()[:16].float().cpu().contiguous()
        digest.update(name.encode() + str(weight_shape(module)).encode() + first.numpy().tobytes())
    return digest.hexdigest()[:16]
