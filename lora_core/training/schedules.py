"""Tells how the learning rate runs over the steps, in closed form: a run that goes on needs no state for it."""

from __future__ import annotations

import math

from .config import OptimizerConfig


def rate(config: OptimizerConfig, steps: int, step: int, peak: float) -> float:
    """Return the rate of step `step` (from 0) of `steps`: linear warm-up to `peak`, then the schedule, which ends near
    0."""
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    return peak * share(config.schedule, step - config.warmup, max(steps - config.warmup, 1), config.restarts)


def share(schedule: str, step: int, steps: int, restarts: int = 1) -> float:
    """Return the rate of step `step` (from 0) of `steps`, relative to its peak.

    `cosine_restarts`: SGDR (Loshchilov and Hutter 2017, arXiv:1608.03983) with `restarts` + 1 cycles of one length.
    `rex`: Chen et al. 2021, arXiv:2107.04197.
    """
    done = step / steps
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - done
    if schedule == "rex":
        return (1 - done) / (1 - done / 2)
    if schedule == "cosine_restarts":
        done = step * (restarts + 1) % steps / steps
    return 0.5 + 0.5 * math.cos(math.pi * done)
