"""Says what a run on a data set is to minimise; how is in `lora_core/training/tasks.py`, a row for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

from ..stored import stored
from .slider import LearnSlider

BETAS = (1.0, 1e6)


class Side(NamedTuple):
    """Says what one side of pairs is called: in a word, one picture of it, and several."""

    word: str
    picture: str
    pictures: str


LIKED, DISLIKED = (Side(word, f"{word} picture", f"{word} pictures") for word in ("liked", "disliked"))
MORE, LESS = (Side(word, f"picture with {word}", f"pictures with {word}") for word in ("more", "less"))


@stored("", tag="Pictures")
@dataclass(frozen=True)
class LearnPictures:
    """To draw pictures like those of the set."""

    name: ClassVar[str] = "pictures"


@stored("beta", tag="Preference")
@dataclass(frozen=True)
class LearnPreference:
    """To draw what the liked picture of each pair has and not what the disliked one has; the larger `beta`, the nearer
    to the base model it stays."""

    beta: float = 2000.0
    name: ClassVar[str] = "preference pairs"
    sides: ClassVar[tuple[Side, Side]] = (LIKED, DISLIKED)
    by_caption: ClassVar[bool] = True

    def __post_init__(self) -> None:
        low, high = BETAS
        if not low <= self.beta <= high:
            raise ValueError(f"beta is {self.beta:g}; it must be between {low:g} and {high:g}")


@stored("guidance", tag="SliderPairs")
@dataclass(frozen=True)
class LearnSliderPairs:
    """To draw the picture with more of each pair at `strength`, and the one with less at its opposite; strength 1 goes
    `guidance` times as far as the two lie apart."""

    guidance: float = 0.5
    name: ClassVar[str] = "slider pictures"
    sides: ClassVar[tuple[Side, Side]] = (MORE, LESS)
    by_caption: ClassVar[bool] = False

    @property
    def strength(self) -> float:
        return 0.5 / self.guidance

    def report(self) -> str:
        """Return what is learned, in a line of plain text."""
        at = f"{self.strength:g}"
        return f"a slider that draws the pictures with more at {at} and those with less at -{at}"


PairTask: TypeAlias = LearnPreference | LearnSliderPairs
Task: TypeAlias = LearnPictures | LearnSlider | PairTask
PICTURES = LearnPictures()


def texts(task: Task, captions: Iterable[str]) -> list[Sequence[str]]:
    """Return the texts of each condition of a picture with these captions: one, or several where the condition holds
    the conditions of them all, in their order."""
    if isinstance(task, LearnSlider):
        return [own for caption in captions for own in task.texts(caption)]
    return [(caption,) for caption in captions]


def shared(tasks: Iterable[Task]) -> Task:
    """Return the task of sets that are one. Raises ValueError where they have several."""
    found = list(dict.fromkeys(tasks))
    if len(found) > 1:
        raise ValueError(
            f"these data sets cannot be combined: one run learns one thing, and they are for {_listed(found)}; train "
            "on each in a run of its own"
        )
    return found[0]


def _listed(tasks: Iterable[Task]) -> str:
    names = list(dict.fromkeys(each.name for each in tasks))
    return " and ".join(names) if names[1:] else f"{names[0]} of several settings"
