"""Chooses what the inputs of Train LoRA leave open, as it suits the model that is connected."""

from __future__ import annotations

from typing import Literal

from ....lora_core.training.config import OptimizerConfig, Targets
from ....lora_core.training.objective_config import TIMESTEP_LAWS, TimestepLaw
from ....lora_core.training.presets import AUTO, Choices, choose
from ....lora_core.training.start import Start
from ..host.wires import Model
from ..model.names import family_of

TIMESTEPS = (AUTO, *TIMESTEP_LAWS)


def choices(
    model: Model, targets: Targets | Literal["auto"], rank: int, alpha: float, learning_rate: float,
    timesteps: TimestepLaw | Literal["auto"], shift: float, optimizer: OptimizerConfig, start: Start | None = None,
) -> Choices:  # fmt: skip
    """Choose what to train with, where 0 and 'auto' stand for what suits this model's family, or for the rank of a LoRA
    to go on from."""
    rank = start.usual_rank() if start and not rank else rank
    return choose(family_of(model).preset_name, targets, rank, alpha, learning_rate, timesteps, shift, optimizer)
