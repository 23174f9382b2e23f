"""Checks and makes ready what a run is made of: sources, encoded pictures and captions, and what tells runs apart."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ....lora_core.data.dataset import Dataset, check_preservation
from ....lora_core.data.pairs import partners
from ....lora_core.data.slider import LearnSlider
from ....lora_core.data.task import LearnSliderPairs
from ....lora_core.families.table import check_trainable
from ....lora_core.ranks.group import here
from ....lora_core.stored import as_dict
from ....lora_core.training.config import Recipe, TrainConfig, fingerprint
from ....lora_core.training.layers import counted
from ....lora_core.training.plan import QuietNeed
from ....lora_core.training.targets import summary, weight_shape
from ....lora_core.training.tasks import task_of
from ....lora_core.training.validation import Pictures
from ..host.progress import Progress
from ..host.wires import Clip, Model
from ..model.encoding import check_sizes, encode_captions, encode_images
from ..model.encoding_cache import tidy
from ..model.names import family_of
from ..model.prior import check_prior, encode_priors
from ..model.references import Beside, check_references, encode_references
from ..model.sampling import empty_latent
from ..model.text_encoders import check_text, tokenized, windows
from ..model.trained_layers import Layers
from ..quiet.directions import foreseen
from ..session.rehearsal import Job, Preview
from ..stack import bypass_injection
from ..stack.carried import BELOW, carried, check_everywhere, in_words
from . import bleeding, previews, strength
from .checks import check_conditioning, check_connected, check_objective, check_task, check_triggers, warnings
from .order import Order, Run, Sources, Subject
from .previews import PreparedPreviews
from .samples import captions_to_encode

log = logging.getLogger("lora_loom")
_STRIPS = 4  # of captions, where no prompt is written


def check(sources: Sources, recipe: Recipe) -> tuple[Subject, list[str]]:
    """Everything that can be known before anything is encoded; what is trained, and what is said of the LoRA to go on
    from and of each rule for single layers."""
    check_connected(sources.clip, sources.vae)
    check_trainable(type(sources.model.model.model_config).__name__)
    if recipe.text:
        check_text(sources.model, sources.clip)
    check_everywhere(sources.model)
    subject = Subject.of(sources, recipe)
    check_objective(recipe.train.objective, subject.prediction)
    layers = subject.layers
    if not recipe.held and not sources.dataset.apart:
        check_preservation(sources.dataset, recipe.train.preservation, recipe.preserve)
    check_triggers(sources.clip, sources.dataset)
    check_prior(sources.model, sources.vae, sources.prior_vae)
    check_task(sources.dataset, subject.family)
    check_references(sources.model, sources.dataset)
    check_sizes(sources.vae, sources.model, sources.dataset)
    hits = counted(recipe.lora.options.rules, list(layers), summary(layers))
    begins = [sources.start.note(layers)] if sources.start else []
    return subject, begins + hits


def identity(recipe: Recipe, sources: Sources, base: str, pictures: Pictures) -> str:
    """Changes with everything that decides the resulting bytes. Quiet directions are told by what they are made from:
    the base, its layers, mu and the neutral prompts."""
    choices = [recipe.lora, recipe.train, sources.dataset.fingerprint(), list(recipe.preserve), base]
    skip = sources.clip.layer_idx
    choices += [recipe.text, skip] if recipe.text or skip is not None else []
    choices += [sources.start.identity()] if sources.start else []
    loras = [
        {key: value for key, value in each.items() if key != "name"} for each in carried(sources.model, sources.clip)
    ]
    choices += [{"loras": loras}] if loras else []
    choices += [{"assistants": sources.assistants.identity()}] if sources.assistants.files else []
    choices += [{"neutral": list(recipe.asked)}] if recipe.asked else []
    return fingerprint(*choices, *([pictures.held] if pictures.held else []))


def settings(recipe: Recipe, sources: Sources, base: str, pictures: Pictures) -> dict[str, Any]:
    """Return what `identity` tells apart, for people."""
    dataset, family = sources.dataset, family_of(sources.model).name
    skip = sources.clip.layer_idx
    text = as_dict(recipe.text) if recipe.text else {}
    text |= {"clip_layer": skip} if recipe.text or skip is not None else {}
    data = {"pictures": dataset.num_pictures(), "px": dataset.resolution, "hash": dataset.fingerprint()}
    data |= {"held out": len(pictures.held)} if pictures.held else {}
    begins = {"continue_from": sources.start.described()} if sources.start else {}
    below, beside = in_words(carried(sources.model, sources.clip)), sources.assistants.in_words()
    return {
        "lora": as_dict(recipe.lora), "train": as_dict(recipe.train), "text": text, "preserve": list(recipe.preserve),
        "dataset": data, "model": {"family": family, "hash": base}, **begins,
        **({BELOW: below} if below else {}), **({"assistants": beside} if beside else {}),
        **({"neutral prompts": {"prompts": len(recipe.asked), "hash": prompts_digest(recipe)}} if recipe.asked else {}),
    }  # fmt: skip


def prompts_digest(recipe: Recipe) -> str:
    """Tells lists of neutral prompts apart."""
    return fingerprint(list(recipe.neutral))


def identified(order: Order, patcher: Model) -> tuple[str, dict[str, Any], list[str]]:
    """Return `identity` and `settings` of a run on the weights of this patcher, and what version 0.1.0 said of the
    LoRAs below it, which had other hashes for some kinds."""
    base, sources = digest(order.subject.layers, patcher), order.sources
    told_apart = order.recipe, sources, base, order.pictures
    before = in_words(carried(sources.model, sources.clip, printed=True))
    return identity(*told_apart), settings(*told_apart), before


def job(
    sources: Sources, recipe: Recipe, encoded: Mapping[str, Any], latents: Sequence[torch.Tensor],
    priors: Sequence[dict[str, torch.Tensor]], beside: Sequence[Beside], shown: PreparedPreviews | None,
    layers: Layers,
) -> Job:  # fmt: skip
    """Return the largest picture, its references included, with the longest caption, a preview, and a step as far as it
    is this rank's."""
    largest = max(range(len(latents)), key=lambda i: latents[i].numel() + beside[i].places())
    length = windows if recipe.text else torch.Tensor.numel
    texts = {**encoded, **beside[largest].texts}
    caption = max(texts, key=lambda caption: length(texts[caption][0][0]))
    conditioning = beside[largest].told(caption, texts, priors[largest])
    shape, text_rank = tuple(latents[largest].shape), recipe.text.rank if recipe.text else 0
    resolution = sources.dataset.resolution
    preview = shown and Preview(tuple(empty_latent(sources.model, shown.previews.sampling).shape[1:]), shown.vae)
    return Job(
        recipe.lora, _shared(recipe.train), shape, conditioning, resolution,
        text_rank=text_rank, start=sources.start, preview=preview,
        quiet=foreseen(layers) if recipe.train.quiet else QuietNeed(), task=task_of(sources.dataset.task),
        assistants=sources.assistants.bytes(),
    )  # fmt: skip


def _shared(config: TrainConfig) -> TrainConfig:
    """Return the batches of the rank that has the most of a step."""
    pictures = -(-config.batch_size * config.accumulation // here().size)
    size = min(config.batch_size, pictures)
    return replace(config, batch_size=size, accumulation=-(-pictures // size))


def encode(
    sources: Sources, clip: Clip, recipe: Recipe, progress: Progress
) -> tuple[dict[str, list], list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """CONDITIONING by `clip` of every caption that training needs (tokens for it when text encoders are trained), the
    latents of all views and their priors."""
    model, dataset = sources.model, sources.dataset

    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what}: {done} of {total}")

    captions = captions_to_encode(dataset, recipe.preserved, recipe.held) | set(strength.prompts(sources, recipe))
    captions |= bleeding.captions(dataset, recipe)
    if recipe.text:
        encoded = tokenized(clip, captions)
    else:
        check = partial(check_conditioning, model)
        encoded = encode_captions(clip, captions, family_of(model).guidance, tick, check, here())
    latents = encode_images(sources.vae, model, dataset, tick, here())
    if (others := partners(dataset)).examples:
        beside = encode_images(sources.vae, model, others, tick, here())
        latents = [torch.stack(pair) for pair in zip(latents, beside, strict=True)]
    priors = encode_priors(sources.prior_vae, model, dataset, tick, here())
    tidy()
    return encoded, latents, priors


def encode_beside(sources: Sources, clip: Clip, progress: Progress) -> list[Beside]:
    """Return what CONDITIONING has of the references of all views."""

    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what}: {done} of {total}")

    return encode_references(sources.vae, clip, sources.model, sources.dataset, tick, here())


def encode_neutral(sources: Sources, clip: Clip, recipe: Recipe, progress: Progress) -> dict[str, list]:
    """CONDITIONING by `clip` of the neutral prompts in their order, or tokens for it when text encoders are trained;
    empty for a run without quiet directions."""
    if not recipe.train.quiet:
        return {}

    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding neutral prompts: {done} of {total}")

    prompts = dict.fromkeys((*recipe.neutral, ""))
    guidance = family_of(sources.model).guidance
    check = partial(check_conditioning, sources.model)
    made = tokenized(clip, prompts) if recipe.text else encode_captions(clip, prompts, guidance, tick, check, here())
    return {prompt: made[prompt] for prompt in prompts}


def planned(sources: Sources, recipe: Recipe, run: Run) -> PreparedPreviews | None:
    """Return the previews, not encoded yet."""
    data = sources.dataset
    triggers = tuple(dict.fromkeys(group.prompt(group.trigger) for group in data.groups if group.trigger))
    examples = [data.examples[i] for i in Pictures(data, recipe).looked_at or range(len(data.examples))]
    edits = [example for example in examples if example.references]
    own = run.previews, sources.vae, triggers, recipe.preserve, data.resolution
    return previews.planned(*own, edits, slider_prompts(data))


def slider_prompts(dataset: Dataset) -> tuple[str, ...] | None:
    """Return the neutral prompts of a slider, or the first captions of its pairs; None for a set of anything else."""
    if isinstance(dataset.task, LearnSliderPairs):
        return tuple(dict.fromkeys(example.captions[0] for example in dataset.examples))[:_STRIPS]
    return dataset.task.neutral if isinstance(dataset.task, LearnSlider) else None


def prepare_previews(
    sources: Sources, clip: Clip, recipe: Recipe, run: Run, beside: Sequence[Beside], progress: Progress
) -> PreparedPreviews | None:
    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what} of the previews: {done} of {total}")

    found = planned(sources, recipe, run)
    made = found and previews.encoded(found, clip, recipe.text is not None, tick)
    return made and previews.with_references(made, clip, sources.model, sources.dataset, beside, tick)


def notes(sources: Sources, told: list[str]) -> list[str]:
    """Return the lines that stay on the node, empty ones left out; they are in the log too."""
    told, unwise = list(filter(None, told)), warnings(sources.model, sources.dataset, sources.assistants.names())
    for text in told:
        log.info(text)
    for text in unwise:
        log.warning(text)
    return [*told, *unwise]


def digest(layers: Mapping[str, torch.nn.Module], patcher: Model) -> str:
    """Tells base models apart: a hash over the first values of every layer that is trained, and what hangs beside them.

    Of a loaded MODEL only: before that its layers may hold the patches of whichever clone was used last.
    """
    digest = hashlib.sha256()
    for name, module in layers.items():
        weight: Any = module.weight
        stored = getattr(weight, "_qdata", weight).as_subclass(torch.Tensor)
        first = stored.detach().flatten()[:16].float().cpu().contiguous()
        digest.update(name.encode() + str(weight_shape(module)).encode() + first.numpy().tobytes())
    digest.update("".join(bypass_injection.content(patcher)).encode())
    return digest.hexdigest()[:16]
