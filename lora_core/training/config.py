"""Defines what a run is: every choice that decides the resulting bytes, validated once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ..stored import as_dict, stored
from .layers import LayersConfig
from .objective_config import TIMESTEP_LAWS, ObjectiveConfig
from .optimizers import OPTIMIZERS
from .optimizers.method import Method
from .ranges import one_of, within

Targets = Literal["attention", "attention+mlp", "all-linear", "linear+conv"]
Schedule = Literal["constant", "cosine", "linear", "cosine_restarts", "rex"]
Keep = Literal["last", "best"]

TARGETS, SCHEDULES, KEEPS = get_args(Targets), get_args(Schedule), get_args(Keep)


@stored("rank alpha preset include exclude options")
@dataclass(frozen=True)
class LoraConfig:
    """Says which layers get a correction, and how large. `include` and `exclude` are fnmatch patterns of layer names;
    `options` say how the corrections are scaled, regularised and trained one by one."""

    rank: int = 16
    alpha: float = 16.0
    preset: Targets = "attention"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    options: LayersConfig = field(default_factory=LayersConfig)

    def __post_init__(self) -> None:
        within("rank", self.rank, 1, 1024)
        within("alpha", self.alpha, 1e-3, 1e4)
        one_of("targets", self.preset, TARGETS)


_NUMBERS = ("beta1", "beta2", "eps")  # that an optimiser may have
_LEAST_FACTOR = 0.01  # below it a learning rate that was meant for another optimiser was left in place


@stored("name schedule warmup restarts weight_decay beta1 beta2 eps max_grad_norm ema_decay")
@dataclass(frozen=True)
class OptimizerConfig:
    """Says how gradients become steps. `beta1`, `beta2` and `eps` of 0 are the optimiser's own.

    The learning rate rises over `warmup` steps, then follows `schedule`; `cosine_restarts` jumps back up `restarts`
    times. `max_grad_norm` and `ema_decay` of 0 are off.
    """

    name: str = "adamw"
    schedule: Schedule = "cosine"
    warmup: int = 0
    restarts: int = 1
    weight_decay: float = 0.01
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        one_of("optimizer", self.name, tuple(OPTIMIZERS))
        one_of("lr_schedule", self.schedule, SCHEDULES)
        within("warmup", self.warmup, 0, 1_000_000)
        within("restarts", self.restarts, 1, 1000)
        within("weight_decay", self.weight_decay, 0.0, 10.0)
        for number in _NUMBERS:
            within(number, getattr(self, number), 0.0, 0.9999999)
            if getattr(self, number) and getattr(self.method, number) is None:
                raise ValueError(f"{self.name} does not use {number}; set it to 0")
        within("max_grad_norm", self.max_grad_norm, 0.0, 1e9)
        within("ema_decay", self.ema_decay, 0.0, 0.9999999)
        if self.method.averages:
            self._check_averaged_once()

    @property
    def method(self) -> Method:
        return OPTIMIZERS[self.name]

    @property
    def numbers(self) -> dict[str, float]:
        """Those of `beta1`, `beta2` and `eps` that the optimiser has, by name."""
        own = {number: getattr(self.method, number) for number in _NUMBERS}
        return {number: getattr(self, number) or usual for number, usual in own.items() if usual is not None}

    def usual_rate(self, of_adamw: float) -> float:
        """Return the learning rate to start from where AdamW's is `of_adamw`; a factor on a found one is 1
        everywhere."""
        return 1.0 if self.method.rate is None else of_adamw * self.method.rate

    def described(self) -> str:
        """For metadata: the optimiser's name and, in brackets, the numbers that are not as usual."""
        own, usual = as_dict(self), as_dict(OptimizerConfig())
        keys = ("weight_decay", "beta1", "beta2", "eps", "ema_decay")
        changed = [f"{key}={own[key]:g}" for key in keys if own[key] != usual[key]]
        return self.method.title + (f"({', '.join(changed)})" if changed else "")

    def _check_averaged_once(self) -> None:
        if self.schedule != "constant":
            raise ValueError(f"{self.name} needs no schedule; set lr_schedule to constant, not {self.schedule}")
        if self.ema_decay:
            raise ValueError(f"{self.name} averages by itself; set ema_decay to 0, not {self.ema_decay:g}")


@stored(
    "steps learning_rate batch_size accumulation seed optimizer objective caption_dropout preservation preserve_every? "
    "quiet? clear_dropout?"
)
@dataclass(frozen=True)
class TrainConfig:
    """Says how the factors are trained.

    `preservation` weighs a second loss that keeps the base model's own answer on captions without the concept. It is
    taken on every `preserve_every`-th step, and then counts so many times as much. `quiet` is the mu of quiet
    directions (`lora_core.quiet`): the smaller, the less is learned where neutral prompts are loud; 0 is off.
    `clear_dropout` is the caption dropout of pictures with little noise, where it is more than `caption_dropout`.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    batch_size: int = 1
    accumulation: int = 1
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    caption_dropout: float = 0.0
    preservation: float = 0.0
    preserve_every: int = 1
    quiet: float = 0.0
    clear_dropout: float = 0.0

    def __post_init__(self) -> None:
        within("steps", self.steps, 1, 1_000_000)
        within("learning_rate", self.learning_rate, 1e-9, 1.0)
        within("batch_size", self.batch_size, 1, 1024)
        within("accumulation", self.accumulation, 1, 1024)
        within("warmup", self.optimizer.warmup, 0, self.steps)
        within("caption_dropout", self.caption_dropout, 0.0, 1.0)
        within("clear_dropout", self.clear_dropout, 0.0, 1.0)
        within("preservation", self.preservation, 0.0, 100.0)
        within("preserve_every", self.preserve_every, 1, 1_000_000)
        if self.quiet:
            within("quiet", self.quiet, 1e-6, 1e3)
        one_of("timesteps", self.objective.timesteps, TIMESTEP_LAWS)
        if self.optimizer.method.rate is None and self.learning_rate < _LEAST_FACTOR:
            raise ValueError(
                f"{self.optimizer.name} finds the learning rate by itself and learning_rate multiplies it; set it to 1 "
                f"or to 0 (auto), not {self.learning_rate:g}"
            )

    def loud(self, preserving: bool = False) -> TrainConfig:
        """Return the same without quiet directions and what comes with them: dropout of captions in pictures with
        little noise and, unless it goes on `preserving`, steps that preserve now and then."""
        kept = {"preservation": 0.0, "preserve_every": 1} if self.preserve_every > 1 and not preserving else {}
        return replace(self, quiet=0.0, clear_dropout=0.0, **kept)


@stored("rank learning_rate")
@dataclass(frozen=True)
class TextConfig:
    """That text encoders are trained along, at the model's alpha / rank: their own rank and learning rate."""

    rank: int
    learning_rate: float

    def __post_init__(self) -> None:
        within("text_rank", self.rank, 1, 1024)
        within("text_learning_rate", self.learning_rate, 1e-9, 1.0)


@stored("held_out every draws patience early_stop keep seed")
@dataclass(frozen=True)
class Validation:
    """Says how a run is watched: `draws` fixed noises for each picture, every `every` steps.

    `held_out` is the share of pictures that are not trained on; 0 looks at training pictures. After `patience`
    validations without a gain the run has reached its plateau; `early_stop` then ends it. `keep` is the LoRA that comes
    out.
    """

    held_out: float = 0.1
    every: int = 100
    draws: int = 4
    patience: int = 4
    early_stop: bool = False
    keep: Keep = "last"
    seed: int = 0

    def __post_init__(self) -> None:
        within("held_out", self.held_out, 0.0, 0.5)
        within("every", self.every, 1, 1_000_000)
        within("draws", self.draws, 1, 64)
        within("patience", self.patience, 2, 1000)
        within("seed", self.seed, 0, 2**63 - 1)
        one_of("keep", self.keep, KEEPS)


@stored("lora train text preserve validation neutral?")
@dataclass(frozen=True)
class Recipe:
    """All choices that decide what is learned from given models and pictures.

    `preserve` are the words that stand in for the trigger in captions on which the base model is preserved. `neutral`
    are whole captions on which it is as well: half of the time where there are both.
    """

    lora: LoraConfig
    train: TrainConfig
    text: TextConfig | None = None
    preserve: tuple[str, ...] = ()
    validation: Validation | None = None
    neutral: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        optimizer = self.train.optimizer
        if self.lora.options.max_norm and optimizer.method.averages:
            raise ValueError(
                f"max_norm does not work with {optimizer.name}; set max_norm to 0 or choose another optimizer"
            )

    @property
    def preserved(self) -> tuple[str, ...]:
        """Return the words of `preserve`; none when preservation has no weight."""
        return self.preserve if self.train.preservation else ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Return the captions of `neutral` where they decide anything: with preservation or quiet directions."""
        return self.neutral if self.train.preservation or self.train.quiet else ()

    @property
    def held(self) -> tuple[str, ...]:
        """Return the captions of `neutral` on which the base is preserved: none when it is on every step, which is
        asked for with class words of one's own."""
        return self.neutral if self.train.preservation and self.train.preserve_every > 1 else ()


def fingerprint(*parts: object) -> str:
    """16 hex digits that change when any choice changes. Parts have names in files (`stored`) or are plain
    JSON values."""
    plain = [as_dict(part) for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
