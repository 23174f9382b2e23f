"""Asks a LoRA how far each concept of a data set is drawn under another one's trigger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from ....lora_core.data.concepts import exchanged, of_concept, overlap, place, triggers
from ....lora_core.data.dataset import Dataset
from ....lora_core.training import objective
from ....lora_core.training.bleeding import LEVELS, MOST_CONCEPTS, Bleeding, levels, of_gains, per_concept
from ....lora_core.training.objective_config import ObjectiveConfig
from ..host.progress import Progress
from ..host.wires import Clip, Conditioning, Model, Vae
from ..model.denoiser import ComfyDenoiser
from ..model.encoding import encode_images
from ..model.names import family_of
from .suggestion import Sampled, asked_as_sampler

_RULE = ObjectiveConfig()


@dataclass(frozen=True)
class _Question:
    latent: Tensor
    of: int
    by: int
    text: str
    seed: int


def bleeding(
    base: tuple[Model, Clip], changed: tuple[Model, Clip], vae: Vae, data: Dataset, negative: str
) -> Bleeding | None:
    """Compare a MODEL and its CLIP with the same under a LoRA, on training pictures; None where the data set has not
    several concepts, or the family draws from no prompts."""
    words = triggers(data)[:MOST_CONCEPTS]
    if len(words) < 2 or overlap(words) or family_of(base[0]).prior is not None:
        return None
    progress = Progress(1)
    asked = _questions(base[0], vae, data, words, progress)
    texts = {negative, *(each.text for each in asked)}
    before, after = (_losses(*each, texts, negative, asked, progress) for each in (base, changed))
    gains = [(q.of, q.by, one - other) for q, one, other in zip(asked, before, after, strict=True)]
    return of_gains(words, gains, len({each.seed for each in asked}), held_out=False)


def _questions(model: Model, vae: Vae, data: Dataset, words: tuple[str, ...], progress: Progress) -> list[_Question]:
    taken = [index for word in words for index in of_concept(data, word)[: max(per_concept(len(words)) // 2, 1)]]
    examples = tuple(data.examples[index] for index in taken)

    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what}: {done} of {total}")

    latents, found, view = encode_images(vae, model, replace(data, examples=examples), tick), [], 0
    for number, example in enumerate(examples):
        for by, text in enumerate(exchanged(example, words)):
            found.append(_Question(latents[view], place(example, words), by, text, number * LEVELS))
        view += example.num_views
    return found


def _losses(
    model: Model, clip: Clip, texts: Iterable[str], negative: str, asked: list[_Question], progress: Progress
) -> list[float]:
    encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in sorted(texts)}
    found = []
    for number, each in enumerate(asked):
        progress.say(f"concepts: {number} of {len(asked)}")
        found.append(_loss(model, encoded[each.text], encoded[negative], each))
    return found


def _loss(model: Model, positive: Conditioning, negative: Conditioning, asked: _Question) -> float:
    """The loss of one picture, mean over noise levels at which it is open what it shows."""
    x0 = asked.latent[None]

    def losses(denoiser: Sampled) -> float:
        return mean(_at(denoiser, x0, u, asked.seed + at) for at, u in enumerate(levels(ComfyDenoiser(model))))

    return asked_as_sampler(model, positive, negative, 1.0, losses, asked.latent.shape)


def _at(denoiser: Any, x0: Tensor, u: float, seed: int) -> float:
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(denoiser.device)
    sigma = denoiser.sigma(torch.tensor([u])).to(denoiser.device)
    return float(objective.losses(denoiser, x0.to(denoiser.device), noise, sigma, [None], _RULE))
