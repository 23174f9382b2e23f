"""Tells the concepts of a data set apart, each by the trigger word of its sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

from .captions import preserved_captions, trigger_pattern
from .dataset import Dataset, Example
from .prompts import without_trigger

MOST_CAPTIONS = 48  # to which pictures are held


def triggers(dataset: Dataset) -> tuple[str, ...]:
    """Return the triggers of all concepts in their order; sets with the same one, in any case, show one concept."""
    found: dict[str, str] = {}
    for group in dataset.groups:
        if group.trigger and group.role == "concept":
            found.setdefault(group.trigger.casefold(), group.trigger)
    return tuple(found.values())


def of_concept(dataset: Dataset, trigger: str) -> list[int]:
    """Return the examples that show the concept of a trigger."""
    return [
        index
        for index, example in enumerate(dataset.examples)
        if example.group.role == "concept" and example.group.trigger.casefold() == trigger.casefold()
    ]


def overlap(words: Sequence[str]) -> str:
    """Say which trigger stands in another one, if any does."""
    for one, other in permutations(words, 2):
        if trigger_pattern(one).search(other):
            return f"the trigger {one} stands in the trigger {other}, so that a caption with {other} has both"
    return ""


def kept_apart(dataset: Dataset) -> Dataset:
    """Return the same as concepts that are to be kept apart. Raises ValueError for fewer than two, for a concept
    without a trigger, for triggers that stand in one another, and where captions are nothing but triggers."""
    words, cure = triggers(dataset), "or switch off keep_apart"
    bare = [Path(group.name).name for group in dataset.groups if group.role == "concept" and not group.trigger]
    if bare:
        raise ValueError(f"keep_apart is on but the set {bare[0]} has no trigger word; write one, {cure}")
    if len(words) < 2:
        raise ValueError(
            f"keep_apart is on but there is only one trigger word, {words[0]}; give each concept its own, {cure}"
            if words
            else f"keep_apart is on but no set shows a concept; connect two that do, {cure}"
        )
    if said := overlap(words):
        raise ValueError(f"{said}; choose triggers that share no word, {cure}")
    if not nameless(dataset):
        raise ValueError(f"keep_apart is on but no caption says more than its trigger; write captions, {cure}")
    return replace(dataset, apart=True)


def nameless(dataset: Dataset) -> tuple[str, ...]:
    """Return the captions of all concepts without their triggers, as text encoders are given them: at most
    `MOST_CAPTIONS`, spread over all. What still holds another's trigger is left out."""
    patterns = [trigger_pattern(word) for word in triggers(dataset)]
    found: dict[str, None] = {}
    for example in dataset.examples:
        text = without_trigger(example.caption, example.group.trigger) if example.group.role == "concept" else ""
        if text and not any(each.search(text) for each in patterns):
            found[example.group.prompt(text)] = None
    texts, count = list(found), min(len(found), MOST_CAPTIONS)
    return tuple(texts[number * len(texts) // count] for number in range(count))


def exchanged(example: Example, words: Sequence[str]) -> list[str]:
    """Return the caption of an example with each trigger in the place of its own, and with none, as text encoders are
    given them."""
    caption, trigger = example.caption, example.group.trigger
    found = [*preserved_captions(caption, trigger, words), without_trigger(caption, trigger)]
    return [example.group.prompt(text) for text in found]


def place(example: Example, words: Sequence[str]) -> int:
    """Return which of the triggers is that of an example."""
    return [word.casefold() for word in words].index(example.group.trigger.casefold())
