"""Asks the LoRA of a run of several concepts how far each is drawn under another one's trigger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node_helpers import conditioning_set_values
from torch import Tensor

from ....lora_core.data.concepts import exchanged, of_concept, overlap, place, triggers
from ....lora_core.data.dataset import Dataset
from ....lora_core.data.task import PICTURES
from ....lora_core.training.bleeding import MOST_CONCEPTS, Question, per_concept
from ....lora_core.training.config import Recipe
from ....lora_core.training.validation import Pictures
from ..model.denoiser import ComfyDenoiser
from .order import Order


@dataclass(frozen=True)
class Questions:
    """Holds what is asked about the concepts of these triggers, and whether the pictures are held out."""

    triggers: tuple[str, ...] = ()
    asked: tuple[Question, ...] = ()
    held_out: bool = True


NOTHING = Questions()


def compared(dataset: Dataset, recipe: Recipe) -> tuple[str, ...]:
    """Return the triggers of the concepts that are compared; none in a run that is not watched, or of one concept, or
    whose triggers stand in one another, or that learns more than pictures under captions."""
    plain = dataset.task == PICTURES and not any(example.references for example in dataset.examples)
    found = triggers(dataset)[:MOST_CONCEPTS] if recipe.validation and plain else ()
    return found if len(found) > 1 and not overlap(found) else ()


def captions(dataset: Dataset, recipe: Recipe) -> set[str]:
    """Return the captions to encode: those of the pictures that are asked for, with every trigger and with none."""
    words, pictures = compared(dataset, recipe), Pictures(dataset, recipe)
    return {text for example in _shown(pictures, words)[0] for text in exchanged(dataset.examples[example], words)}


def questions(
    denoiser: ComfyDenoiser, order: Order, encoded: Mapping[str, list], latents: Sequence[Tensor],
    priors: Sequence[Mapping[str, Tensor]],
) -> Questions:  # fmt: skip
    """Return what to ask. Latents and priors are those of all views."""
    dataset = order.sources.dataset
    words, found = compared(dataset, order.recipe), []
    shown, held_out = _shown(order.pictures, words)
    for picture in shown:
        example, view = dataset.examples[picture], sum(one.num_views for one in dataset.examples[:picture])
        for by, text in enumerate(exchanged(example, words)):
            told = conditioning_set_values(encoded[text], dict(priors[view]))
            found.append(Question(picture, place(example, words), by, denoiser.condition(told, latents[view])))
    return Questions(words, tuple(found), held_out)


def _shown(pictures: Pictures, words: Sequence[str]) -> tuple[list[int], bool]:
    """The examples of each concept that are looked at, and whether all are held out: those that validation looks at, or
    else the first."""
    looked_at, found, held_out = set(pictures.looked_at), [], len(pictures.held) > 0
    for word in words:
        own = of_concept(pictures.dataset, word)
        seen = [index for index in own if index in looked_at]
        held_out = held_out and bool(seen)
        found += (seen or own)[: per_concept(len(words))]
    return found, held_out
