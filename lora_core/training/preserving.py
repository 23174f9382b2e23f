"""Chooses the steps and the captions on which the base model's own answer is kept.

A run of version 0.1.0 keeps it on every step, on its pictures' captions with the concept replaced, drawn with all else.
With neutral captions, or on every k-th step, what is drawn depends on the seed and the step alone: the pictures, noises
and noise levels of the run are those that it has without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import objective, timesteps
from .config import TrainConfig
from .dropout import is_clear
from .inject import Factors
from .objective import Denoiser
from .sample import Sample

OPEN = 0.8  # share of noise in a flow model's picture, from which on it is open what it will show
_TRIES = 256  # levels drawn for one that has enough noise; a law without any gives what it has


def preserved(
    config: TrainConfig, step: int, part: int, batch: Sequence[Sample], generator: torch.Generator
) -> list[Any]:
    """Return one condition for each sample of micro-batch `part` of `step`, which counts from 1; none where the step
    does not preserve. Where a sample has conditions of both kinds, either is as likely."""
    if not config.preservation or step % config.preserve_every:
        return []
    if config.preserve_every > 1 or any(sample.neutral for sample in batch):
        generator = _own(config, step, part)
    return [_one(sample, generator) for sample in batch]


def noisy_levels(
    config: TrainConfig, step: int, part: int, sigma: Tensor, denoiser: Denoiser, tokens: float
) -> Tensor | None:
    """Return noise levels for the same pictures, (batch,), at which the base is preserved instead of at theirs, drawn
    from the run's law; None where it is at theirs.

    Where captions are dropped in pictures with little noise, the answer to other captions may move there: no picture of
    another caption shows the concept then. Nor is it held where a texture or a large shape shows through the noise, as
    the concept could not be learned from what it looks like.
    """
    if not config.clear_dropout:
        return None
    own = _own(config, step, part, "levels")
    drawn = denoiser.sigma(timesteps.draw(config.objective, _TRIES * len(sigma), own, tokens))
    return drawn[is_clear(denoiser.snr(drawn), OPEN).int().argsort(stable=True)[: len(sigma)]]


def add_preservation(
    config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
    kept: list[Any], share: float,
) -> Tensor | None:  # fmt: skip
    """Add the gradient of the loss that preserves the base on conditions `kept`, one for each sample, as `add_gradient`
    does; return that loss, not weighted, a scalar, or None where nothing is kept."""
    if not kept:
        return None
    change = objective.preservation(denoiser, factors, denoiser.noised(x0, noise, sigma), sigma, kept)
    (change * config.preservation * config.preserve_every / (config.accumulation / share)).backward()
    return change.detach()


def _own(config: TrainConfig, step: int, part: int, what: str = "") -> torch.Generator:
    text = f"{config.seed} {step} {part} {what}"
    return torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))


def _one(sample: Sample, generator: torch.Generator) -> Any:
    kinds = [kind for kind in (sample.preserved, sample.neutral) if kind]
    pool = kinds[0] if len(kinds) == 1 else kinds[int(torch.randint(2, (), generator=generator))]
    return pool[int(torch.randint(len(pool), (), generator=generator))]
