"""The rows of `dev.py bench learn`: who learns, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks._learners import File, Learner, Task, native, ours
from benchmarks._peers import peers
from benchmarks._results import DEFAULT, DIRECTIONS, LOUD, NATIVE, PRESERVING, SAME_TIME, STATES, TWICE
from lora_loom.lora_core.swap import swapped
from lora_loom.lora_core.training.config import OptimizerConfig
from lora_loom.nodes.bridge.training import run as product
from lora_loom.nodes.bridge.training.order import Order

AS_IN_0_1_0 = {
    "quiet": "off", "learning_rate": 3e-3, "targets": "attention+mlp", "timesteps": "shifted_logit_normal",
}  # fmt: skip
_ONLY = {"quiet": "directions"}


def preserving(task: Task, seed: int, settings: Mapping[str, Any]) -> File:
    """The default's preserving steps at the rate of 0.1.0, in a run that goes on loud."""

    def loud(order: Order, *_: Any) -> tuple[Order, None]:
        train = replace(order.recipe.train, quiet=0.0)
        return replace(order, recipe=replace(order.recipe, train=train)), None

    with swapped([(product, "quieted", loud)]):
        return ours(task, seed, settings | {"quiet": "directions+preservation"})


MAIN = (
    Learner(LOUD, ours, AS_IN_0_1_0),
    Learner(TWICE, ours, AS_IN_0_1_0 | {"learning_rate": 6e-3}),
    Learner(DEFAULT, ours),
    Learner(DIRECTIONS, ours, _ONLY),
)
ALONE = (Learner(PRESERVING, preserving, {**AS_IN_0_1_0}),)
COMFYUI = tuple(
    Learner(f"{NATIVE}{rate and f', {rate:g}'}", native, {"learning_rate": rate} if rate else {})
    for rate in ("", 1e-3, 2e-3)
)
EQUAL_TIME = (
    Learner(DEFAULT + SAME_TIME, ours, timed_as=DEFAULT),
    Learner(DIRECTIONS + SAME_TIME, ours, _ONLY, timed_as=DIRECTIONS),
    Learner(DEFAULT + STATES, ours, timed_as=DEFAULT, states=True),
)
_RATES = tuple(
    Learner(f"{name}, {rate:g}", run, {"learning_rate": rate}, seeds=1)
    for name, run, lowest in (("ours", ours, 1e-3), (NATIVE, native, 2.5e-4))
    for rate in (lowest * 2**i for i in range(6))
)
_SETTINGS = {
    "uniform timesteps": {"timesteps": "uniform"},
    "logit-normal timesteps": {"timesteps": "logit_normal"},
    "shift 8": {"shift": 8.0, "timesteps": "shifted"},
    "min-SNR": {"weighting": "min_snr"},
    "attention": {"targets": "attention"},
    "all-linear": {"targets": "all-linear"},
    "alpha 4": {"alpha": 4.0},
    "alpha 16": {"alpha": 16.0},
    "rank 32": {"rank": 32},
    "constant rate": {"lr_schedule": "constant"},
    "warm-up": {"warmup": 20},
    "caption dropout": {"caption_dropout": 0.1},
    "class words every step": {"preservation": 1.0},
    "EMA": {"optimizer": OptimizerConfig(ema_decay=0.98)},
    "Prodigy": {"optimizer": OptimizerConfig("prodigy")},
}
GROUPS = {
    "main": MAIN,
    "comfyui": COMFYUI,
    "alone": ALONE,
    "peers": peers(AS_IN_0_1_0),
    "time": EQUAL_TIME,
    "modes": (Learner(f"{NATIVE}, bypass", native, {"bypass_mode": True}, seeds=1),),
    "rates": _RATES,
    "settings": tuple(Learner(f"ours, {name}", ours, choice, seeds=1) for name, choice in _SETTINGS.items()),
}
