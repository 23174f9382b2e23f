"""Lets the base model draw, once, the pictures that a slider learns on where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import comfy.model_management
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ....lora_core.data.dataset import Dataset, Options
from ....lora_core.data.reading import from_tensors
from ....lora_core.data.slider import LearnSlider, Texts
from ....lora_core.training.presets import preset_of
from ..host.node_outputs import as_image_batch
from ..host.progress import Progress
from ..host.wires import Clip, Conditioning, Model, Vae
from ..model.encoding import encode_captions
from ..model.encoding_cache import Encodings, clip_identity, model_identity, vae_identity
from ..model.names import family_of
from ..model.sampling import Sampling, check_size, decoded, latents
from .checks import check_conditioning, check_connected

_ALIKE = 1e-3  # of the size of an encoding: what differs by less is told apart by rounding alone
_STEP = 32  # pixels, of buckets


@dataclass(frozen=True)
class Base:
    """The base model of a slider, its text encoder and its VAE."""

    model: Model
    clip: Clip
    vae: Vae

    def identity(self) -> str | None:
        """Changes with anything that pictures depend on; None where not all of it is known."""
        found = model_identity(self.model), clip_identity(self.clip), vae_identity(self.vae)
        return " ".join(each for each in found if each) if all(found) else None

    def encodings(self, loaded: bool = False) -> Encodings:
        """Return where its pictures are kept. Until the model is `loaded`, its weights may be told as those of the
        clone that was used last."""
        if loaded:
            comfy.model_management.load_models_gpu([self.model])
        return Encodings("base_pictures", self.identity())


def slider_set(base: Base, choice: LearnSlider, pictures: int, sampling: Sampling) -> Dataset:
    """Return `pictures` that the base has drawn of its neutral prompts in turn, as the set of a slider; cfg 0 is what
    suits the family.

    Raises ValueError for a base that cannot draw, and for prompts that its text encoder does not tell apart, before
    anything is drawn; ComfyUI's interrupt between steps.
    """
    _check(base, sampling)
    family, texts, neutral = family_of(base.model), [Texts(*own) for own in choice.prompts], choice.neutral
    progress = Progress(pictures)
    encoded = _encoded(base, texts, progress)
    for own in texts:
        check_apart(own, encoded)
    sampling = replace(sampling, cfg=sampling.cfg or preset_of(family.preset_name).cfg)
    prompts = [neutral[number % len(neutral)] for number in range(pictures)]
    drawn = list(_drawn(base, [encoded[prompt] for prompt in prompts], encoded[""], sampling, progress))
    options = Options(caption_weights=True)
    data = from_tensors(drawn, [prompt or "no prompt" for prompt in prompts], "", sampling.width, _STEP, 1, options)
    named = (
        replace(example, source=f"base picture {number + 1}", caption=prompt, captions=(prompt,))
        for number, (example, prompt) in enumerate(zip(data.examples, prompts, strict=True))
    )
    return replace(data, examples=tuple(named), task=choice)


def _check(base: Base, sampling: Sampling) -> None:
    check_connected(base.clip, base.vae)
    family = family_of(base.model)
    if family.system or family.prior:
        raise ValueError(
            f"a slider cannot be made of prompts with {family.system or family.name}, because it does not draw from "
            "prompts alone; connect pictures with more and with less instead"
        )
    check_size(base.vae, sampling.width, sampling.height)


def _encoded(base: Base, texts: Sequence[Texts], progress: Progress) -> dict[str, list]:
    def tick(done: int, total: int, what: str) -> None:
        progress.say(f"encoding {what}: {done} of {total}")

    check = partial(check_conditioning, base.model)
    return encode_captions(base.clip, {"", *(text for own in texts for text in own)}, None, tick, check)


def check_apart(texts: Texts, encoded: Mapping[str, Conditioning]) -> None:
    """Raises ValueError where more and less are encoded as the same."""
    more, less = (tree_leaves(encoded[text]) for text in (texts.more, texts.less))
    if len(more) == len(less) and all(map(_alike, more, less)):
        raise ValueError(
            f"'{texts.more}' and '{texts.less}' are the same to this text encoder, so there is nothing to move; write "
            "them in other words"
        )


def _alike(one: object, other: object) -> bool:
    if not (torch.is_tensor(one) and torch.is_tensor(other)):
        return type(one) is type(other)
    if one.shape != other.shape:
        return False
    return bool((one.double() - other.double()).norm() <= _ALIKE * one.double().norm())


def _drawn(
    base: Base, prompts: Sequence[Conditioning], negative: Conditioning, sampling: Sampling, progress: Progress
) -> Iterator[Tensor]:
    """Yield a picture (height, width, 3) in 0..1 of each prompt, each from a seed of its own; kept on disk."""
    encodings = base.encodings()
    settings = [sampling.width, sampling.height, sampling.steps, sampling.cfg, sampling.sampler, sampling.scheduler]
    for number, prompt in enumerate(prompts):
        seed = (sampling.seed + number) % 2**64
        progress.say(f"the base model draws picture {number + 1} of {len(prompts)}")

        def draw(prompt: Conditioning = prompt, seed: int = seed) -> Tensor:
            return as_image_batch(decoded(base.vae, latents(base.model, prompt, negative, sampling, seed)))[0]

        content = [settings, seed, prompt, negative]
        if (found := encodings.find(content)) is None:
            encodings = base.encodings(loaded=True)
            found = encodings.of(content, draw)
        yield found
        progress.tick(number + 1)
