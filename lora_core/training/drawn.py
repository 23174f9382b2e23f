"""Draws a micro-batch: which pictures, at which noise, under which captions.

Every rank of a run draws all of a step, from the same generator, and computes its share: the draws of a run are those
that it has on one rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ranks.group import Group
from . import objective, timesteps
from .config import TrainConfig
from .dropout import dropped
from .objective import Denoiser
from .preserving import noisy_levels, preserved
from .sample import Sample, place_weights
from .state import TrainState
from .steps import brought
from .tasks import PICTURES, Task


@dataclass(frozen=True)
class Drawn:
    """A micro-batch in RAM: which pictures it shows, the quantiles of their noise levels, and what a gradient is made
    of (see `tasks.add_gradient`). `keep` is what passes through the ranks of layers is multiplied by, if by any."""

    indices: list[int]
    quantiles: list[float]
    x0: Tensor
    noise: Tensor
    sigma: Tensor
    conditions: list[Any]
    kept: list[Any]
    places: Tensor | None
    levels: Tensor | None
    keep: Tensor | None

    def brought(self, rows: range, device: torch.device) -> tuple[tuple, Tensor | None]:
        """Return what a gradient of these rows is made of, and `keep`, on the device."""
        own = slice(rows.start, rows.stop)
        apart = self.x0, self.noise, self.places, self.sigma, self.levels
        come = brought([*(each if each is None else each[own] for each in apart), self.keep], device)
        x0, noise, places, sigma, levels, keep = come
        return (x0, noise, sigma, self.conditions[own], self.kept[own], places, levels), keep


def draw(
    config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample], part: int,
    task: Task = PICTURES,
) -> Drawn:  # fmt: skip
    """Draw micro-batch `part` of the step that is to come."""
    indices, generator = state.batches.next(), state.generator
    batch = [samples[i].drawn(generator) for i in indices]
    x0 = torch.stack([sample.latent for sample in batch])
    shape = task.shown(x0).shape
    noise = objective.draw_noise(shape, config.objective.noise_offset, generator)
    tokens = denoiser.tokens(shape)
    u = timesteps.draw(config.objective, len(batch), generator, tokens)
    sigma = denoiser.sigma(u)
    unnamed = dropped(config, denoiser.snr(sigma), generator)
    conditions = [s.unconditional if drop else s.condition for s, drop in zip(batch, unnamed, strict=True)]
    kept = preserved(config, state.step + 1, part, batch, generator)
    levels = noisy_levels(config, state.step + 1, part, sigma, denoiser, tokens) if kept else None
    places = place_weights(config.objective, batch)
    keep = state.factors.chances(generator)
    return Drawn(
        indices, u.tolist(), x0, noise, sigma, conditions=conditions, kept=kept, places=places, levels=levels, keep=keep
    )


def shares(group: Group, drawn: Iterable[Drawn]) -> Iterator[tuple[Drawn, range]]:
    """Yield every micro-batch of a step with the rows of it that are this rank's: of all pictures in their order, as
    many as others have or one more. Alone, each is drawn when the one before has been used."""
    if group.size == 1:
        yield from ((each, range(len(each.indices))) for each in drawn)
        return
    parts, at = list(drawn), 0
    own = group.share(sum(len(each.indices) for each in parts))
    for each in parts:
        count = len(each.indices)
        first, last = (min(max(end - at, 0), count) for end in (own.start, own.stop))
        yield each, range(first, last)
        at += count
