"""Chooses what the inputs of Train LoRA leave open, as it suits the model that is connected."""

from __future__ import annotations

from typing import Literal

from ....lora_core.data.dataset import Dataset
from ....lora_core.training.config import OptimizerConfig, Targets
from ....lora_core.training.objective_config import TIMESTEP_LAWS, TimestepLaw
from ....lora_core.training.presets import AUTO, Choices, choose, preset_of
from ....lora_core.training.start import Start
from ..host.wires import Model
from ..model.names import family_of

TIMESTEPS = (AUTO, *TIMESTEP_LAWS)


def choices(
    model: Model, targets: Targets | Literal["auto"], rank: int, alpha: float, learning_rate: float,
    timesteps: TimestepLaw | Literal["auto"], shift: float, optimizer: OptimizerConfig, start: Start | None = None,
    quiet: bool = False,
) -> Choices:  # fmt: skip
    """Choose what to train with, where 0 and 'auto' stand for what suits this model's family, or for the rank of a LoRA
    to go on from."""
    rank = start.usual_rank() if start and not rank else rank
    family = family_of(model).preset_name
    return choose(family, targets, rank, alpha, learning_rate, timesteps, shift, optimizer, quiet)


def steps_for(model: Model, dataset: Dataset, per_step: int, steps: int) -> tuple[int, str]:
    """Return the steps, and a sentence where they were left open: from the pictures that show the concept, as it suits
    this model's family."""
    if steps:
        return steps, ""
    shown = {id(each.origin) for each in dataset.examples if each.group.role == "concept"} or {0}
    law = preset_of(family_of(model).preset_name).steps
    found = law.of(len(shown), per_step)
    return found, f"steps {found} for {len(shown)} pictures ({law.each} for each, {law.least} to {law.most})"
