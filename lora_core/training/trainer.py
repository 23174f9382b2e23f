"""The training loop: a generator of results that knows no user interface."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import objective, optimizers, schedules, timesteps
from .batches import Batches
from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser
from .optimizers.schedule_free import ScheduleFreeAdamW


@dataclass(frozen=True)
class Sample:
    """A training example as the denoiser wants it: a latent (channels, ...) and encoded conditions.

    `unconditional` is that of the empty caption, `preserved` are those of its caption with the concept replaced.
    `mask` is the weight of each place of the latent in 0..1, of its shape but for one channel; None: 1 everywhere.
    `variants` show the same with other pixels or words and a latent of the same shape: each time one is drawn.
    """

    latent: Tensor
    condition: Any
    unconditional: Any
    preserved: tuple[Any, ...] = ()
    mask: Tensor | None = None
    variants: tuple[Sample, ...] = ()

    def drawn(self, generator: torch.Generator) -> Sample:
        """Itself or one of its variants, each as likely."""
        if not self.variants:
            return self
        return (self, *self.variants)[int(torch.randint(1 + len(self.variants), (), generator=generator))]


@dataclass(frozen=True)
class Look:
    """One picture in one forward: its index, the quantile u of its noise level, and its loss."""

    index: int
    u: float
    loss: float


@dataclass(frozen=True)
class StepResult:
    """One optimiser step: its number from 1, its mean loss and the gradient norm before clipping.

    `text_norm` is that of the text encoders' part, `preservation` the loss that preserves, not weighted; both are 0
    without. `looks` are all pictures of the step.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    text_norm: float = 0.0
    preservation: float = 0.0
    looks: tuple[Look, ...] = ()


@dataclass
class TrainState:
    """Everything that decides how a run goes on. `generator` is its only source of randomness, on the CPU."""

    factors: Factors
    batches: Batches
    generator: torch.Generator
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list[float] = field(default_factory=list)
    ema: Tensor | None = None  # of the factors, from the first step of a run that keeps one

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """Undo the random draws and the half gradient of a step that is cut off inside (cancel, out of memory)."""
        draws, queue, done = self.generator.get_state(), list(self.batches.queue), False
        try:
            yield
            done = True
        finally:
            if not done:
                self.generator.set_state(draws)
                self.batches.queue = queue
                self.factors.flat.grad.zero_()

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Inside, the factors are those to look at and to save: their EMA, or the average of a schedule-free optimiser.

        On leaving, the trained ones are back, bit for bit. A run that averages nothing has only one kind.
        """
        flat, average = self.factors.flat, self._average()
        if average is None:
            yield
            return
        trained = flat.clone()
        flat.copy_(average)
        try:
            yield
        finally:
            flat.copy_(trained)

    def _average(self) -> Tensor | None:
        if isinstance(self.optimizer, ScheduleFreeAdamW):
            return torch.cat(self.optimizer.averages())
        return self.ema

    def follow(self, decay: float) -> None:
        """Take the factors of step `step` into the EMA; with few steps done it looks back less than `decay` says."""
        if self.ema is None:
            self.ema = self.factors.flat.clone()
        self.ema.lerp_(self.factors.flat, 1 - min(decay, (1 + self.step) / (10 + self.step)))


def make_optimizer(factors: Factors, config: TrainConfig, text_rate: float = 0.0) -> torch.optim.Optimizer:
    """The optimiser of all parts of the factors; text encoders at `text_rate`."""
    peaks = (config.learning_rate, text_rate)[: len(factors.parts)]
    return optimizers.make(config.optimizer, list(zip(factors.parts, factors.matrices(), peaks, strict=True)))


def train(
    config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample]
) -> Iterator[StepResult]:
    """Step until `config.steps`; `state` is complete and consistent at every yield.

    A loss or gradient that is not finite raises FloatingPointError before it can touch the factors.
    """
    flat, choices = state.factors.flat, config.optimizer
    while state.step < config.steps:
        rate = schedules.rate(choices, config.steps, state.step, config.learning_rate)
        with state.whole_step():
            parts = [_backward(config, state, denoiser, samples) for _ in range(config.accumulation)]
            mean = sum(part.loss for part in parts)
            norm, text_norm = float(flat.grad.norm()), sum(float(part.grad.norm()) for part in state.factors.parts[1:])
            _check_finite(mean, norm, state.step + 1, rate)
        if 0 < choices.max_grad_norm < norm:
            flat.grad.mul_(choices.max_grad_norm / norm)
        for group in state.optimizer.param_groups:
            group["lr"] = schedules.rate(choices, config.steps, state.step, group["peak"])
        state.optimizer.step()
        flat.grad.zero_()
        state.step += 1
        state.losses.append(mean)
        if choices.ema_decay:
            state.follow(choices.ema_decay)
        looks = tuple(look for part in parts for look in part.looks)
        yield StepResult(state.step, mean, norm, rate, text_norm, sum(part.preservation for part in parts), looks)


def _check_finite(loss: float, grad_norm: float, step: int, rate: float) -> None:
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            raise FloatingPointError(f"the {name} became {value} at step {step}; lower the learning rate ({rate:g})")


@dataclass(frozen=True)
class _Part:
    """A micro-batch: its shares of the step's losses, and its pictures."""

    loss: float
    preservation: float
    looks: list[Look]


def _backward(config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample]) -> _Part:
    """Add one micro-batch's gradient to the flat buffer."""
    indices, draw, device = state.batches.next(), state.generator, state.factors.flat.device
    batch = [samples[i].drawn(draw) for i in indices]
    x0 = torch.stack([sample.latent for sample in batch])
    noise = torch.randn(x0.shape, generator=draw).to(device)
    u = timesteps.draw(config.timesteps, len(batch), config.shift, draw)
    sigma = denoiser.sigma(u).to(device)
    dropped = torch.rand(len(batch), generator=draw) < config.caption_dropout
    conditions = [s.unconditional if drop else s.condition for s, drop in zip(batch, dropped, strict=True)]
    kept = []
    if config.preservation:
        picks = [int(torch.randint(len(s.preserved), (), generator=draw)) for s in batch]
        kept = [s.preserved[pick] for s, pick in zip(batch, picks, strict=True)]
    losses, change = add_gradient(config, state.factors, denoiser, x0.to(device), noise, sigma, conditions, kept)
    looks = [Look(*values) for values in zip(indices, u.tolist(), losses.tolist(), strict=True)]
    return _Part(float(losses.mean()) / config.accumulation, float(change) / config.accumulation, looks)


def add_gradient(
    config: TrainConfig,
    factors: Factors,
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditions: list[Any],
    preserved: list[Any],
) -> tuple[Tensor, Tensor | float]:
    """Add the gradient of one micro-batch that lies on the device to the flat buffer.

    Returns the loss of each sample, (batch,), and the loss that preserves, not weighted, a scalar.
    """
    losses = objective.losses(denoiser, x0, noise, sigma, conditions, config.weighting, config.snr_gamma)
    (losses.mean() / config.accumulation).backward()
    if not preserved:
        return losses.detach(), 0.0
    change = objective.preservation(denoiser, factors, denoiser.noised(x0, noise, sigma), sigma, preserved)
    (change * config.preservation / config.accumulation).backward()
    return losses.detach(), change.detach()
