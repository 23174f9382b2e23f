"""Defines what the loss is: every choice of Training Objective, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..stored import stored
from .ranges import one_of, within

Loss = Literal["mse", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "snr"]
Weighting = Literal["none", "min_snr", "debiased", "cosmap"]
TimestepLaw = Literal[
    "uniform", "logit_normal", "shifted", "shifted_logit_normal", "resolution_shifted", "mode", "shifted_by_size"
]  # fmt: skip

LOSSES, HUBER_SCHEDULES, WEIGHTINGS, TIMESTEP_LAWS = (
    get_args(t) for t in (Loss, HuberSchedule, Weighting, TimestepLaw)
)
AUTO: Final = "auto"
SHIFTED = ("shifted", "shifted_logit_normal", "shifted_by_size")
LEAST_MODE, MOST_MODE = -1.0, 1.75  # between them the mode law is monotone: up to 2 / (pi - 2)


@stored(
    "loss huber_c huber_schedule weighting snr_gamma timesteps shift logit_mean logit_std mode_scale "
    "noise_offset unmasked prior_weight"
)
@dataclass(frozen=True)
class ObjectiveConfig:
    """Says what is minimised, and where. `timesteps` may be 'auto' until a model family settles it.

    `huber_c` is where huber and smooth_l1 turn from square to linear, in units of the network's output. `snr_gamma` is
    used by `min_snr`, `shift` by the SHIFTED laws, `logit_mean` and `logit_std` by those of a logit-normal,
    `mode_scale` by `mode`. `unmasked` weighs what a mask leaves out, `prior_weight` pictures of a class.
    """

    loss: Loss = "mse"
    huber_c: float = 0.1
    huber_schedule: HuberSchedule = "snr"
    weighting: Weighting = "none"
    snr_gamma: float = 5.0
    timesteps: TimestepLaw | Literal["auto"] = "uniform"
    shift: float = 3.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    noise_offset: float = 0.0
    unmasked: float = 0.0
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        one_of("huber_schedule", self.huber_schedule, HUBER_SCHEDULES)
        one_of("weighting", self.weighting, WEIGHTINGS)
        one_of("timesteps", self.timesteps, (AUTO, *TIMESTEP_LAWS))
        within("huber_c", self.huber_c, 1e-4, 1e4)
        within("snr_gamma", self.snr_gamma, 0.1, 100.0)
        within("shift", self.shift, 0.01, 100.0)
        within("logit_mean", self.logit_mean, -10.0, 10.0)
        within("logit_std", self.logit_std, 0.01, 10.0)
        within("mode_scale", self.mode_scale, LEAST_MODE, MOST_MODE)
        within("noise_offset", self.noise_offset, 0.0, 1.0)
        within("unmasked", self.unmasked, 0.0, 1.0)
        within("prior_weight", self.prior_weight, 0.0, 100.0)
