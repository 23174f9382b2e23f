"""Describes what the doctor says of a data set: one sentence, with the pictures it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .dataset import Example
from .pictures import MASK_ENDING

_NAMED = 4  # pictures that a sentence names


@dataclass(frozen=True)
class DatasetFinding:
    """`text` is a sentence with its cure, `mark` a word for the thumbnails, `examples` the pictures it is about."""

    urgency: int  # 3: it will spoil the result, 2: it will hurt, 1: worth a look
    text: str
    mark: str = ""
    examples: tuple[Example, ...] = ()


def is_mask(example: Example) -> bool:
    """By its name."""
    return Path(example.source).stem.endswith(MASK_ENDING)


def names(examples: Sequence[Example]) -> str:
    return listed([Path(example.source).name for example in examples])


def listed(found: Sequence[str]) -> str:
    if len(found) > _NAMED:
        return f"{', '.join(found[:_NAMED])} and {len(found) - _NAMED} more"
    return " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def are(examples: Sequence) -> str:
    return "is" if len(examples) == 1 else "are"
