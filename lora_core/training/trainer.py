"""The training loop: a generator of results that knows no user interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from . import objective, schedules, snapshot, timesteps
from .config import TrainConfig
from .dropout import dropped
from .health import GOOD_EVERY, LOWERED, MOST_IN_A_ROW, RUINED, diverged, quiet, suspicious
from .inject import Factors
from .objective import Denoiser
from .optimizers.build import optimizer_of
from .pairs import grad_of
from .preserving import preserved
from .ruin import ProbeBatch, rise
from .sample import Sample, place_weights
from .state import TrainState
from .steps import MicroBatch, StepResult, StepSummary, brought

Made = TypeVar("Made")
Gradient = Callable[..., tuple[Tensor, Tensor | None]]  # as `add_gradient`


@dataclass(frozen=True)
class Trouble:
    """A step that was dropped, or the run gone back to step `step`, in words."""

    step: int
    text: str
    went_back: bool = False


def make_optimizer(factors: Factors, config: TrainConfig, text_rate: float = 0.0) -> torch.optim.Optimizer:
    """Return the optimiser of all parts of the factors; text encoders at `text_rate`."""
    rates = [part.rate * (text_rate if part.text else config.learning_rate) for part in factors.parts]
    parts = [(part.flat, part.matrices, rate) for part, rate in zip(factors.parts, rates, strict=True)]
    optimizer = optimizer_of(config.optimizer, parts)
    # fused kernels change a tensor without telling its version, by which the factors' copies know that they are old
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(factors.flat))
    for group, part in zip(optimizer.param_groups, factors.parts, strict=True):
        if part.magnitudes:
            group["weight_decay"] = 0.0  # towards zero they would fade the weight itself
    return optimizer


def train(
    config: TrainConfig,
    state: TrainState,
    denoiser: Denoiser,
    samples: Sequence[Sample],
    report: Callable[[Trouble], None] = lambda _: None,
    relief: Callable[[RuntimeError], Callable[[], object] | None] = lambda _: None,
    gradient: Gradient | None = None,
) -> Iterator[StepResult]:
    """Step until `config.steps`; `state` is complete and consistent at every yield and every report.

    A step whose loss or gradient is not finite is dropped: only its random draws stay. After three in a row, when the
    first updates have ruined the model, or when the loss has risen for good, the run goes back to its last good state,
    its draws going on, and lowers the learning rate; the second time it goes back and raises FloatingPointError.

    A step that fails with an error for which `relief` has a call that makes room is taken once more, after it, from
    the same draws. `gradient` takes the place of `add_gradient` and finds the same in another way.
    """
    gradient = gradient or add_gradient
    if state.good is None:
        state.good = snapshot.take(state)
    while state.step < config.steps or _lost(state):
        if why := _lost(state):
            _go_back(config, state, why, report)
            continue
        found = _twice(partial(_forth_and_back, config, state, denoiser, samples, gradient), relief)
        if found.ruined:
            _go_back(config, state, found.ruined, report)
            continue
        if not (math.isfinite(found.loss) and math.isfinite(found.norm)):
            _drop(state, found.loss, found.norm, report)
            continue
        rate = _rate(config, state, config.learning_rate)
        _update(config, state, found.loss, found.norm)
        yield StepResult(
            state.step, found.loss, found.norm, rate,
            text_norm=found.text_norm, preservation=found.preservation, looks=found.looks,
        )  # fmt: skip


def _forth_and_back(
    config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample], gradient: Gradient
) -> StepSummary:
    """The gradient of one step, whole or not at all."""
    with state.whole_step():
        parts = [_backward(config, state, denoiser, samples, gradient, i) for i in range(config.accumulation)]
        state.factors.carry_back()
        found = StepSummary.of(parts, grad_of(state.factors.flat), state.factors.text_gradient())
        if suspicious([*state.losses, found.loss]):
            found = replace(found, ruined=_ruined(config, state, denoiser, parts))
        return found


def _twice(work: Callable[[], Made], relief: Callable[[RuntimeError], Callable[[], object] | None]) -> Made:
    try:
        return work()
    except RuntimeError as error:
        make_room = relief(error)
        if make_room is None:
            raise
    make_room()  # when the error is gone, which holds the frames of the step and their tensors
    return work()


def _rate(config: TrainConfig, state: TrainState, peak: float) -> float:
    return schedules.rate(config.optimizer, config.steps, state.step, peak) * state.health.rate


def _update(config: TrainConfig, state: TrainState, loss: float, norm: float) -> None:
    flat, choices = state.factors.flat, config.optimizer
    state.torn = True
    if 0 < choices.max_grad_norm < norm:
        grad_of(flat).mul_(choices.max_grad_norm / norm)
    for group in state.optimizer.param_groups:
        group["lr"] = _rate(config, state, group["peak"])
    state.optimizer.step()
    state.factors.cap_()
    grad_of(flat).zero_()
    state.step += 1
    state.losses.append(loss)
    if choices.ema_decay:
        state.follow(choices.ema_decay)
    state.health.in_row = 0
    state.events += 1
    if state.step % GOOD_EVERY == 0 and quiet(state.losses):
        state.good = snapshot.take(state)
    state.torn = False


def _drop(state: TrainState, loss: float, norm: float, report: Callable[[Trouble], None]) -> None:
    grad_of(state.factors.flat).zero_()
    state.health.dropped += 1
    state.health.in_row += 1
    state.events += 1
    what = f"the loss was {loss}" if not math.isfinite(loss) else f"the gradient norm was {norm}"
    report(Trouble(state.step, f"step {state.step + 1} was dropped: {what}"))


def _lost(state: TrainState) -> str:
    """Return why the run cannot go on from here; empty when it can."""
    if state.health.in_row >= MOST_IN_A_ROW:
        return f"loss or gradient were not finite {MOST_IN_A_ROW} times in a row at step {state.step + 1}"
    return f"the loss rose for good up to step {state.step}" if diverged(state.losses) else ""


def _ruined(config: TrainConfig, state: TrainState, denoiser: Denoiser, parts: Sequence[MicroBatch]) -> str:
    """Return why the run cannot go on from here, when a measurement says so: the model itself is what it began with."""
    good = cast(dict[str, Tensor], state.good)  # `train` has taken it
    times = rise(config, state.factors, good["factors"], denoiser, [part.shown for part in parts])
    if not times > RUINED:
        return ""
    return (
        f"the learning rate ruined the run by step {state.step}: at equal noise the loss is {times:.2g} times that of "
        f"step {snapshot.as_json(good['learnt'])['step']}"
    )


def _go_back(config: TrainConfig, state: TrainState, why: str, report: Callable[[Trouble], None]) -> None:
    first, used = state.health.rate == 1, config.learning_rate * state.health.rate
    state.torn = True
    snapshot.put_back(state, cast(dict[str, Tensor], state.good))
    state.health.in_row, state.health.rate = 0, LOWERED
    state.events += 1
    state.torn = False
    lowered = f"; the learning rate was lowered to {config.learning_rate * LOWERED:g}" if first else ""
    report(Trouble(state.step, f"{why}; back to step {state.step}{lowered}", went_back=True))
    if not first:
        raise FloatingPointError(
            f"{why}, even with the learning rate lowered to {used:g}; the run was kept as it was at step {state.step}. "
            f"Choose a learning_rate below {used:g}, or load the model as bf16 or fp32"
        )


def _backward(
    config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample], gradient: Gradient, part: int
) -> MicroBatch:
    """Add the gradient of micro-batch `part` to the flat buffer."""
    indices, draw, device = state.batches.next(), state.generator, state.factors.flat.device
    batch = [samples[i].drawn(draw) for i in indices]
    x0 = torch.stack([sample.latent for sample in batch])
    noise = objective.draw_noise(x0.shape, config.objective.noise_offset, draw)
    u = timesteps.draw(config.objective, len(batch), draw, denoiser.tokens(x0.shape))
    sigma = denoiser.sigma(u)
    unnamed = dropped(config, denoiser.snr(sigma), draw)
    conditions = [s.unconditional if drop else s.condition for s, drop in zip(batch, unnamed, strict=True)]
    kept = preserved(config, state.step + 1, part, batch, draw)
    places = place_weights(config.objective, batch)
    x0, noise, places, sigma = brought([x0, noise, places, sigma], device)
    with state.factors.dropped(draw):
        losses, change = gradient(config, state.factors, denoiser, x0, noise, sigma, conditions, kept, places)
    return MicroBatch(losses, change, indices, u.tolist(), ProbeBatch(x0, conditions, places))


def add_gradient(
    config: TrainConfig,
    factors: Factors,
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditions: list[Any],
    kept: list[Any],
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Add the gradient of one micro-batch that lies on the device to the flat buffer. `kept` are conditions on which
    the base's answer is preserved, one for each sample; none where it is not.

    Returns the loss of each sample, (batch,), and the loss that preserves, not weighted, a scalar; None without.
    """
    losses = objective.losses(denoiser, x0, noise, sigma, conditions, config.objective, places)
    (losses.mean() / config.accumulation).backward()
    if not kept:
        return losses.detach(), None
    change = objective.preservation(denoiser, factors, denoiser.noised(x0, noise, sigma), sigma, kept)
    (change * config.preservation * config.preserve_every / config.accumulation).backward()
    return losses.detach(), change.detach()
