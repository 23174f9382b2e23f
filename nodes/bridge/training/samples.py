"""Examples as the training loop takes them: each view with its latent, mask and conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from node_helpers import conditioning_set_values
from torch import Tensor
from torch.nn import functional

from ....lora_core.data.captions import preserved_captions
from ....lora_core.data.concepts import nameless
from ....lora_core.data.dataset import Dataset, Example
from ....lora_core.data.task import PICTURES, texts
from ....lora_core.data.task import Task as Learn
from ....lora_core.training.tasks import Task, task_of
from ....lora_core.training.trainer import Sample
from ..model.denoiser import ComfyDenoiser
from ..model.references import NONE, Beside


def captions_to_encode(dataset: Dataset, preserve: tuple[str, ...], neutral: tuple[str, ...] = ()) -> set[str]:
    """Return every caption that training needs: all orders of tags, the empty one, and those that are preserved."""
    told = (texts(dataset.task, example.captions) for example in dataset.examples)
    captions = {text for own in told for each in own for text in each}
    kept = (_preserved(example, dataset.task, preserve, neutral) for example in dataset.examples)
    return {"", *neutral, *captions, *_apart(dataset)}.union(*kept)


def make_samples(
    denoiser: ComfyDenoiser, dataset: Dataset, encoded: dict[str, list], latents: list[Tensor],
    priors: Sequence[dict[str, Tensor]], preserve: tuple[str, ...], neutral: tuple[str, ...] = (),
    references: Sequence[Beside] = (),
) -> list[Sample]:  # fmt: skip
    """Return a Sample per example, whose variants are its further views and captions. Latents, priors and references
    are those of all views, in the order of the examples; conditions are made for the size of what networks see, with
    its own prior, and with its own references but where the base's answer is preserved."""
    views = zip(latents, priors, references or [NONE] * len(latents), strict=True)
    shared, task = Neutral(denoiser, encoded, neutral), task_of(dataset.task)
    bare = Neutral(denoiser, encoded, _apart(dataset))
    return [
        _sample(
            denoiser, example, encoded, list(islice(views, example.num_views)), preserve, shared,
            bare=bare, task=task, told=texts(dataset.task, example.captions),
        )
        for example in dataset.examples
    ]  # fmt: skip


def _apart(dataset: Dataset) -> tuple[str, ...]:
    """The captions without triggers on which the base is preserved, where concepts are kept apart."""
    return nameless(dataset) if dataset.apart else ()


class Neutral:
    """Conditions of `captions` that are not a picture's own, which all latents of one shape share unless they have
    priors of their own."""

    def __init__(self, denoiser: ComfyDenoiser, encoded: dict[str, list], captions: tuple[str, ...]):
        self.denoiser, self.encoded, self.captions = denoiser, encoded, captions
        self.known: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def of(self, latent: Tensor, prior: dict[str, Tensor]) -> tuple[Any, ...]:
        if prior:
            return self._made(latent, prior)
        shape = tuple(latent.shape)
        if shape not in self.known:
            self.known[shape] = self._made(latent, prior)
        return self.known[shape]

    def _made(self, latent: Tensor, prior: dict[str, Tensor]) -> tuple[Any, ...]:
        texts = (conditioning_set_values(self.encoded[text], prior) for text in self.captions)
        return tuple(self.denoiser.condition(text, latent) for text in texts)


def _sample(
    denoiser: ComfyDenoiser, example: Example, encoded: dict[str, list], views: list, preserve: tuple[str, ...],
    neutral: Neutral, bare: Neutral, task: Task, told: Sequence[Sequence[str]],
) -> Sample:  # fmt: skip
    kept, found = _preserved(example, task.choice, preserve, neutral.captions), []
    for (latent, prior, beside), mask in zip(views, example.masks(), strict=True):
        seen = task.shown(latent[None])[0]
        if not found or prior or beside is not NONE:
            conditions = {
                text: denoiser.condition(beside.told(text, encoded, prior), seen)
                for text in dict.fromkeys((*chain.from_iterable(told), ""))
            }
            plain = conditions if beside is NONE else {}
            held = {
                text: plain[text] if text in plain else denoiser.condition(NONE.told(text, encoded, prior), seen)
                for text in dict.fromkeys(kept)
            }
        preserved = tuple(held[text] for text in kept) + bare.of(seen, prior)
        weights = None if mask is None else _per_latent(mask, seen)
        rest = task.condition(conditions[""]), preserved, weights, example.group.role == "class"
        general, shapes = neutral.of(seen, prior), beside.shapes()
        found += [Sample(latent, _condition(conditions, each), *rest, neutral=general, beside=shapes) for each in told]
    return replace(found[0], variants=tuple(found[1:]))


def _condition(conditions: Mapping[str, Any], told: Sequence[str]) -> Any:
    found = tuple(conditions[text] for text in told)
    return found if found[1:] else found[0]


def _preserved(example: Example, learn: Learn, preserve: tuple[str, ...], neutral: tuple[str, ...]) -> list[str]:
    """Captions with a class word in the trigger's place; where neutral captions do as well, none of a concept that has
    no trigger, and which would be preserved away. Of sliders and pairs without a trigger the words are the captions."""
    if preserve and not example.group.trigger and learn != PICTURES:
        return list(preserve)
    if neutral and not example.group.trigger and example.group.role == "concept":
        return []
    kept = preserved_captions(example.caption, example.group.trigger, preserve)
    return [example.group.prompt(caption) for caption in kept]


def _per_latent(mask: Tensor, latent: Tensor) -> Tensor:
    """A mask (height, width) uint8 as weights in 0..1 of the latent's places: the mean over the pixels of each."""
    small = functional.adaptive_avg_pool2d(mask[None].float() / 255, (latent.shape[-2], latent.shape[-1]))
    return small.view(*(1 for _ in latent.shape[:-2]), *small.shape[-2:])
