"""Chooses what the input `quiet` of Train LoRA stands for, and the neutral prompts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ....lora_core.data.dataset import Dataset
from ....lora_core.data.neutral import Neutral, neutral
from ....lora_core.data.prompts import lines
from ....lora_core.data.task import PICTURES
from ....lora_core.training.presets import preset_of
from ..host.wires import Model
from ..model.names import family_of

AUTO, OFF, DIRECTIONS, BOTH = "auto", "off", "directions", "directions+preservation"
Choice = Literal["auto", "off", "directions", "directions+preservation"]
QUIET = (AUTO, OFF, DIRECTIONS, BOTH)
MU = 0.003  # of the directions
EVERY, WEIGHT = 4, 2.0  # steps from one that preserves to the next, and what each step's share of its loss counts
CLEAR_DROPOUT = 0.5  # under quiet directions guidance exaggerates what is learned without it
LOUD = "warning: this run trains without quiet directions"


@dataclass(frozen=True)
class Quiet:
    """Holds what `quiet` means for a run: `mu` of its directions, 0 without them, whether the base is preserved beside
    them, the neutral prompts of both, and sentences for the node."""

    mu: float = 0.0
    preserving: bool = False
    prompts: tuple[str, ...] = ()
    coverage: str = ""
    notes: tuple[str, ...] = ()

    def training(self, preservation: float) -> dict[str, float]:
        """Return what it means to TrainConfig. A `preservation` that a person has set is that of every step."""
        steps = {"preservation": WEIGHT, "preserve_every": EVERY} if self.preserving and not preservation else {}
        dropout = CLEAR_DROPOUT if self.mu else 0.0
        return {"preservation": preservation, **steps, "quiet": self.mu, "clear_dropout": dropout}

    @property
    def choice(self) -> str:
        """Return the choice of the input that it comes to."""
        return (BOTH if self.preserving else DIRECTIONS) if self.mu else OFF


def goes_quiet(choice: str, family: str, trigger: bool) -> bool:
    """Return whether there are to be directions: auto takes them for a data set that has a trigger word, on a family
    (by the name of its preset) on which they were measured."""
    return choice != OFF and (choice != AUTO or (trigger and preset_of(family).quiet))


def chosen(choice: Choice, model: Model, dataset: Dataset, class_words: Sequence[str], own: str) -> Quiet:
    """Auto is everything or nothing, and nothing where anything but pictures is learned: it was measured on these."""
    pictures = dataset.task == PICTURES
    if not goes_quiet(choice, family_of(model).preset_name, bool(dataset.trigger) and pictures):
        return Quiet()
    found = prompts_for(model, dataset, class_words, own)
    if found.empty:
        reason = "every neutral prompt contains the trigger word; write others in neutral_prompts"
        return Quiet(notes=(f"{LOUD}: {reason}",))
    return Quiet(MU, choice != DIRECTIONS and bool(dataset.trigger), found.prompts, found.coverage(), found.left_out)


def prompts_for(model: Model, dataset: Dataset, class_words: Sequence[str], own: str) -> Neutral:
    """Return the neutral prompts of a run on this data set."""
    triggers = [group.trigger for group in dataset.groups]
    captions = [example.caption for example in dataset.examples if example.written]
    return neutral(family_of(model).neutral, triggers, class_words, captions, lines(own))
