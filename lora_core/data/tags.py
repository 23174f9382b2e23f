"""Names the folders of a data set and counts the tags of its captions, for a LoRA's header."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .captions import tags
from .dataset import Dataset, Example


def sets_by_folder(dataset: Dataset) -> dict[str, list[Example]]:
    """Return the pictures of each set, once each whatever their resolutions, by the last part of their folder's
    path."""
    found: dict[str, list[Example]] = {}
    for group in dataset.groups:
        folder = name = Path(group.name).name or "images"
        number = 1
        while name in found:
            number += 1
            name = f"{folder} ({number})"
        once = {id(each.origin): each for each in dataset.examples if each.group == group}
        found[name] = list(once.values())
    return found


def tag_frequency(examples: Iterable[Example]) -> dict[str, int]:
    """Return how many captions hold each tag, counted as sd-scripts does: split at commas, in small letters.

    The trigger is a tag of its own, spelled as it is, in every caption that has it anywhere, so that readers put it
    first: in captions that are sentences it would not be found.
    """
    counts: Counter[str] = Counter()
    for example in examples:
        trigger = example.group.trigger
        counts.update({tag.lower() for tag in tags(example.caption)} - {trigger.lower()} | ({trigger} - {""}))
    return dict(counts)
