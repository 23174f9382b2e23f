"""Measures how much of a LoRA's concept is there, and how much else changes, at every strength and without parts of its
blocks: a few answers of the model for each, as a sampler would get them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from types import MappingProxyType
from typing import Any, TypeVar

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ....lora_core.adapter import TEXT_PREFIX, Adapter
from ....lora_core.analysis.suggestion import Suggestion, Without
from ....lora_core.data.captions import plain
from ....lora_core.data.dataset import Dataset
from ....lora_core.data.neutral import neutral
from ....lora_core.families.blocks import parts
from ....lora_core.training import guided, objective, validation
from ....lora_core.training.config import TrainConfig, Validation
from ....lora_core.training.objective_config import ObjectiveConfig
from ....lora_core.training.presets import AUTO, choose
from ....lora_core.training.sample import Sample
from ....lora_core.training.strengths import (
    MOST_PICTURES,
    STRENGTHS,
    Ends,
    Looked,
    apart,
    curve_of,
    few,
)
from ....lora_core.training.validation import Draw
from ..host.progress import Progress
from ..host.wires import Clip, Conditioning, Model, Vae
from ..model.denoiser import ComfyDenoiser
from ..model.encoding import encode_images
from ..model.names import family_of
from ..model.sampling import Sampling, empty_latent
from ..stack.apply_stack import apply_entries
from ..stack.entries import Entry

NOTHING: Mapping[str, float] = MappingProxyType({})
_DRAWS = 2  # of noise for each picture, for its loss


@dataclass(frozen=True)
class Asked:
    """Says what LoRA Report asks: prompts with the trigger, the trigger, class words, the negative prompt, and how
    pictures are drawn."""

    prompts: tuple[str, ...]
    trigger: str
    words: tuple[str, ...]
    negative: str
    sampling: Sampling


@dataclass(frozen=True)
class Shown:
    """A latent (channels, ...) with what it shows, and the noises that it is looked at with."""

    latent: Tensor
    caption: str
    draws: Sequence[Draw]


def suggestion(
    base: tuple[Model, Clip], vae: Vae, entries: Sequence[Entry], data: Dataset | None, asked: Asked
) -> Suggestion | str:
    """Measure one LoRA, on pictures of the data set or else by its change of prompts with the trigger; return why not
    where it cannot be measured."""
    if len(entries) != 1:
        return "No strength is suggested for several LoRAs together; connect one."
    progress = Progress(1)
    try:
        scene = scene_of(base, vae, entries[0], data, asked, progress)
    except ValueError as error:
        return f"No strength is suggested: {error}."
    return _measured(scene, progress)


def scene_of(
    base: tuple[Model, Clip], vae: Vae | None, entry: Entry, data: Dataset | None, asked: Asked, progress: Progress
) -> Scene:  # fmt: skip
    """Return what a LoRA is looked at on: pictures of the data set, or else prompts with the trigger, and neutral
    prompts. Raises ValueError for a model that does not draw from prompts, and for pictures that cannot be encoded."""
    family = family_of(base[0])
    if family.prior is not None:
        raise ValueError(f"{family.name} draws from {family.prior.what} of a picture, not from prompts")
    try:
        shown = _shown(base[0], vae, data, progress) if data is not None and vae is not None else []
    except ValueError as error:
        raise ValueError(f"the pictures cannot be looked at: {error}") from error
    captions = [each.caption for each in data.examples if each.written] if data is not None else []
    triggers = {plain(asked.trigger), *(group.trigger for group in (data.groups if data is not None else ()))}
    quiet = few(neutral(family.neutral, triggers, asked.words, captions).prompts)
    return Scene(*base, entry, shown, quiet, asked)


def _measured(scene: Scene, progress: Progress) -> Suggestion:
    left_out = parts((*scene.entry.adapter.layers, *scene.entry.adapter.others))
    strengths, total = (0.0, *STRENGTHS), len(STRENGTHS) + 1 + len(left_out)
    progress.begin()

    def seen(number: int, strength: float, factors: Mapping[str, float] = NOTHING) -> Seen:
        left = f", {progress.time_left(number, total)}" if number else ""
        progress.say(f"strengths and blocks: {number} of {total}{left}")
        progress.tick(number, total)
        return scene.seen(strength, factors)

    found = {strength: seen(number, strength) for number, strength in enumerate(strengths)}
    base, without = found[0.0], []
    looked = {strength: own.looked(base) for strength, own in found.items()}
    curve = curve_of(looked, len(scene.shown), len(scene.quiet))
    ends = Ends(looked[0.0], looked[1.0])
    for number, (name, layers) in enumerate(left_out.items() if curve.points else (), len(strengths)):
        point = ends.point(1.0, seen(number, 1.0, dict.fromkeys(layers, 0.0)).looked(base))
        without.append(Without(name, point.concept, point.leak))
    return Suggestion(curve, tuple(without), seen=bool(scene.shown))


@dataclass(frozen=True)
class Seen:
    """Holds the mean loss and the mean error of the guided answer on pictures, if there are any, and the answers to
    prompts with the trigger and to neutral ones."""

    far: tuple[float, ...]
    told: Sequence[Tensor]
    answers: Sequence[Tensor]

    def looked(self, base: Seen) -> Looked:
        """Without pictures, the farther from the base the nearer to the concept."""
        return Looked(self.far or (-apart(self.told, base.told),), self.answers)


class Scene:
    """Looks at one LoRA at any strength. Texts are encoded once where it does not change how."""

    def __init__(
        self, model: Model, clip: Clip, entry: Entry, shown: Sequence[Shown], quiet: Sequence[str], asked: Asked
    ):
        self.model, self.clip, self.entry = model, clip, entry
        self.shown, self.quiet, self.asked = shown, quiet, asked
        on_text = any(name.startswith(TEXT_PREFIX) for name in (*entry.adapter.layers, *entry.adapter.others))
        self.texts = None if on_text else self._encoded(clip)
        self.shapes = [each.latent.shape for each in shown] or [empty_latent(model, asked.sampling).shape[1:]]

    def seen(self, strength: float, factors: Mapping[str, float] = NOTHING, adapter: Adapter | None = None) -> Seen:
        """Look at the LoRA at a strength, on the model and on text encoders, with layers at `factors` of it; or at
        another `adapter` in its place, of the same layers or fewer."""
        entry = replace(self.entry, adapter=adapter or self.entry.adapter, strength=strength, text_strength=strength)
        entry = replace(entry, factors={**entry.factors, **factors})
        model, clip = apply_entries(self.model, self.clip, [entry])[:2] if strength else (self.model, self.clip)
        texts = self.texts or self._encoded(clip)
        told = () if self.shown else self.asked.prompts
        far = [self._far(model, texts, each) for each in self.shown]
        means = (mean(loss for loss, _ in far), mean(error for _, error in far)) if far else ()
        told, quiet = ([self._answer(model, texts, *each) for each in enumerate(own)] for own in (told, self.quiet))
        return Seen(means, told, quiet)

    def _encoded(self, clip: Clip) -> dict[str, Conditioning]:
        wanted = {self.asked.negative, *self.quiet, *(each.caption for each in self.shown)}
        wanted |= set() if self.shown else set(self.asked.prompts)
        return {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in sorted(wanted)}

    def _far(self, model: Model, texts: Mapping[str, Conditioning], shown: Shown) -> tuple[float, float]:
        """The loss of one picture as in training, and the error of its guided answer."""
        sample, config = Sample(shown.latent, None, None), TrainConfig(steps=1)
        at = [replace(draw, picture=0) for draw in shown.draws]

        def losses(denoiser: Sampled) -> float:
            noises, x0 = validation.noises_of(at, shown.latent[None].shape).to(denoiser.device), shown.latent[None]
            levels = denoiser.sigma(torch.tensor([draw.u for draw in at])).to(denoiser.device)
            x0, rule = x0.to(denoiser.device), config.objective
            pairs = zip(noises.split(1), levels.split(1), strict=True)
            return mean(float(objective.losses(denoiser, x0, *each, [None], rule)) for each in pairs)

        def error(denoiser: Sampled) -> float:
            own = guided.plan(at)
            return float(guided.errors(own, config, denoiser, [sample], denoiser.device, 1.0, lambda: None))

        positive, shape = texts[shown.caption], shown.latent.shape
        ask = partial(asked_as_sampler, model, positive, texts[self.asked.negative], shape=shape)
        return ask(1.0, losses), ask(self.asked.sampling.cfg, error)

    def _answer(self, model: Model, texts: Mapping[str, Conditioning], number: int, prompt: str) -> Tensor:
        """The estimate of a picture from almost nothing but noise, which is that of the number."""
        shape = self.shapes[number % len(self.shapes)]
        x0 = self.shown[number % len(self.shown)].latent[None] if self.shown else torch.zeros(1, *shape)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(number))

        def answer(denoiser: Sampled) -> Tensor:
            sigma = denoiser.sigma(torch.tensor([guided.START])).to(denoiser.device)
            x_t = denoiser.noised(x0.to(denoiser.device), noise.to(denoiser.device), sigma)
            return denoiser.denoised(x_t, sigma, [None]).float().cpu()

        return asked_as_sampler(model, texts[prompt], texts[self.asked.negative], 1.0, answer, shape)


def _shown(model: Model, vae: Vae, data: Dataset, progress: Progress) -> list[Shown]:
    """Pictures of the concept, spread over the data set. Raises ValueError for those that the VAE cannot encode."""
    pictures = [each for each in data.pictures() if each.group.role == "concept"]
    count = min(MOST_PICTURES, len(pictures))
    taken = [pictures[number * len(pictures) // count] for number in range(count)]

    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what}: {done} of {total}")

    latents = encode_images(vae, model, replace(data, examples=tuple(taken)), tick)
    firsts = [sum(each.num_views for each in taken[:number]) for number in range(count)]
    found = choose(family_of(model).preset_name, AUTO, 0, 0.0, 0.0, AUTO, 1.0)
    config = TrainConfig(steps=1, objective=ObjectiveConfig(timesteps=found.timesteps, shift=found.shift))
    tokens = ComfyDenoiser(model).tokens
    digests = [each.digest for each in taken]
    draws = validation.plan(
        range(count), digests, config, Validation(draws=_DRAWS), lambda i: tokens(latents[firsts[i]].shape)
    )
    return [
        Shown(latents[first], each.captions[0], [draw for draw in draws if draw.picture == number])
        for number, (first, each) in enumerate(zip(firsts, taken, strict=True))
    ]


Found = TypeVar("Found")


def asked_as_sampler(
    model: Model, positive: Conditioning, negative: Conditioning, cfg: float, ask: Callable[[Sampled], Found],
    shape: Sequence[int],
) -> Found:  # fmt: skip
    """Return what is found in answers to one prompt, for latents (channels, ...), while ComfyUI has the model loaded
    and all that hangs on it in place, as for a sampler."""
    empty, sampler = torch.zeros(1, *shape), _Asking(model, ask)
    sampling: Any = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.sigma_max), 0.0])
    comfy.sample.sample_custom(model, empty, cfg, sampler, sigmas, positive, negative, empty, disable_pbar=True, seed=0)
    return sampler.found


class _Asking(comfy.samplers.Sampler):
    """Takes the place of a sampler."""

    found: Any

    def __init__(self, model: Model, ask: Callable[[Sampled], Any]):
        self.model, self.ask = model, ask

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        self.found = self.ask(Sampled(self.model, partial(model_wrap, **extra_args)))
        return noise


class Sampled(ComfyDenoiser):
    """Answers as a model that is being sampled does, with its guidance and to its prompt, whatever the conditions."""

    def __init__(self, patcher: Model, answer: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(patcher)
        self.answer = answer

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.answer(x_t, sigma)
