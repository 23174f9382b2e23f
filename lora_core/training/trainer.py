"""The training loop: a generator of results that knows no user interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor

from ..ranks.group import Group, here
from . import schedules, snapshot
from .config import TrainConfig
from .drawn import Drawn, draw, shares
from .health import GOOD_EVERY, LOWERED, MOST_IN_A_ROW, RUINED, diverged, quiet, suspicious
from .inject import Factors
from .objective import Denoiser
from .optimizers.build import optimizer_of
from .pairs import grad_of
from .reduced import check, reduced
from .ruin import ProbeBatch, rise
from .sample import Sample
from .state import TrainState
from .steps import MicroBatch, StepResult, StepSummary
from .tasks import PICTURES, Task

Made = TypeVar("Made")
Gradient = Callable[..., tuple[Tensor, Tensor | None]]  # as `tasks.add_gradient`
Relief = Callable[[RuntimeError], Callable[[], object] | None]


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
    relief: Relief = lambda _: None,
    gradient: Gradient | None = None,
    asked: Callable[[], bool] = bool,
    aid: Callable[[], AbstractContextManager] = nullcontext,
    task: Task = PICTURES,
) -> Iterator[StepResult]:
    """Step until `config.steps`; `state` is complete and consistent at every yield and every report.

    A step whose loss or gradient is not finite is dropped: only its random draws stay. After three in a row, when the
    first updates have ruined the model, or when the loss has risen for good, the run goes back to its last good state,
    its draws going on, and lowers the learning rate; the second time it goes back and raises FloatingPointError.

    A step that fails with an error for which `relief` has a call that makes room is taken once more, after it, from
    the same draws. The `task` says what is minimised; `gradient` takes the place of its `add_gradient` and finds the
    same in another way.
    All that a step computes, it computes inside an `aid`.

    Where there are several ranks, all begin with the same state, and each step is shared among them: they come to the
    same results, trouble and end. When any of them is `asked` to stop, all stop behind the step that they are in. Where
    one fails, the others raise ElsewhereError.
    """
    gradient, group, stop = gradient or task.add_gradient, here(), False
    check(group, config)
    if state.good is None:
        state.good = snapshot.take(state)
    while not stop and (state.step < config.steps or _lost(state)):
        if why := _lost(state):
            _go_back(config, state, why, report)
            continue
        with aid():
            found, stop = _forth_and_back(group, config, state, denoiser, samples, task, gradient, relief, asked)
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
    group: Group, config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample],
    task: Task, gradient: Gradient, relief: Relief, asked: Callable[[], bool],
) -> tuple[StepSummary, bool]:  # fmt: skip
    """The gradient of one step, whole or not at all, and whether it is the last that was asked for."""
    own = partial(_share, group, config, state, denoiser, samples, task, gradient)
    with state.whole_step():
        parts, stop = reduced(group, state.factors.flat, config, lambda: _twice(own, relief), asked)
        state.factors.carry_back()
        found = StepSummary.of(parts, grad_of(state.factors.flat), state.factors.text_gradient())
        if suspicious([*state.losses, found.loss]):
            found = replace(found, ruined=_ruined(group, config, state, denoiser, parts, task, relief))
        return found, stop


def _share(
    group: Group, config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample],
    task: Task, gradient: Gradient,
) -> list[MicroBatch]:  # fmt: skip
    """This rank's part of the gradient of one step, whole or not at all."""
    with state.whole_step():
        drawn = (draw(config, state, denoiser, samples, part, task) for part in range(config.accumulation))
        return [_backward(config, state, denoiser, gradient, each, rows) for each, rows in shares(group, drawn)]


def _twice(work: Callable[[], Made], relief: Relief) -> Made:
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


def _ruined(
    group: Group, config: TrainConfig, state: TrainState, denoiser: Denoiser, parts: Sequence[MicroBatch],
    task: Task, relief: Relief,
) -> str:  # fmt: skip
    """Return why the run cannot go on from here, when a measurement says so: the model itself is what it began with."""
    good = cast(dict[str, Tensor], state.good)  # `train` has taken it
    shown = [part.shown for part in parts]
    patient = partial(_twice, relief=relief)
    times = rise(config, state.factors, good["factors"], denoiser, shown, group, patient, task)
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
    config: TrainConfig, state: TrainState, denoiser: Denoiser, gradient: Gradient, drawn: Drawn, rows: range
) -> MicroBatch:
    """Add the gradient of these rows of a micro-batch to the flat buffer."""
    count, device = len(drawn.indices), state.factors.flat.device
    given, keep = drawn.brought(rows, device)
    x0, _, _, conditions, _, places, _ = given
    if rows:
        with state.factors.keeping(keep):
            losses, change = gradient(config, state.factors, denoiser, *given, len(rows) / count)
    else:
        losses, change = x0.new_zeros(0), x0.new_zeros(()) if drawn.kept else None
    shown = ProbeBatch(x0, conditions, places, rows.start, count)
    return MicroBatch(losses, change, drawn.indices, drawn.quantiles, shown, rows.start)
