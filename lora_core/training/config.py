"""What a run is: every choice that decides the resulting bytes, validated once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Targets = Literal["attention", "attention+mlp", "all-linear", "linear+conv"]
Weighting = Literal["none", "min_snr", "debiased"]
TimestepLaw = Literal["uniform", "logit_normal", "shifted", "shifted_logit_normal"]
Schedule = Literal["constant", "cosine"]

TARGETS, WEIGHTINGS, TIMESTEP_LAWS, SCHEDULES = (get_args(t) for t in (Targets, Weighting, TimestepLaw, Schedule))
SHIFTED = ("shifted", "shifted_logit_normal")


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get a correction, and how large. `include` and `exclude` are fnmatch patterns of layer names."""

    rank: int = 16
    alpha: float = 16.0
    preset: Targets = "attention"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _within("rank", self.rank, 1, 1024)
        _within("alpha", self.alpha, 1e-3, 1e4)
        _one_of("targets", self.preset, TARGETS)


@dataclass(frozen=True)
class TrainConfig:
    """How the factors are trained. `shift` is used by the SHIFTED timestep laws, `snr_gamma` by `min_snr`.

    `preservation` weighs a second loss that keeps the base model's own answer on captions without the concept.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    batch_size: int = 1
    accumulation: int = 1
    seed: int = 0
    schedule: Schedule = "cosine"
    warmup: int = 0
    weighting: Weighting = "none"
    snr_gamma: float = 5.0
    timesteps: TimestepLaw = "uniform"
    shift: float = 3.0
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    caption_dropout: float = 0.0
    preservation: float = 0.0

    def __post_init__(self) -> None:
        _within("steps", self.steps, 1, 1_000_000)
        _within("learning_rate", self.learning_rate, 1e-9, 1.0)
        _within("batch_size", self.batch_size, 1, 1024)
        _within("accumulation", self.accumulation, 1, 1024)
        _within("warmup", self.warmup, 0, self.steps)
        _within("shift", self.shift, 0.01, 100.0)
        _within("snr_gamma", self.snr_gamma, 0.1, 100.0)
        _within("caption_dropout", self.caption_dropout, 0.0, 1.0)
        _within("preservation", self.preservation, 0.0, 100.0)
        _one_of("weighting", self.weighting, WEIGHTINGS)
        _one_of("timesteps", self.timesteps, TIMESTEP_LAWS)
        _one_of("schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class TextConfig:
    """That text encoders are trained along, at the model's alpha / rank: their own rank and learning rate."""

    rank: int
    learning_rate: float

    def __post_init__(self) -> None:
        _within("text_rank", self.rank, 1, 1024)
        _within("text_learning_rate", self.learning_rate, 1e-9, 1.0)


def fingerprint(*parts: object) -> str:
    """16 hex digits that change when any choice changes. Parts are dataclasses or plain JSON values."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
