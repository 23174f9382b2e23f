"""Whether an update has ruined what it should improve, measured on pictures at hand at equal noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..swap import holding
from . import objective, timesteps
from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser

_LEVELS = 4  # noise levels, in the middle of equal shares of the timestep law


class ProbeBatch(NamedTuple):
    """Holds what a micro-batch is made of, on the device."""

    x0: Tensor
    conditions: list[Any]
    places: Tensor | None


@torch.no_grad()
def rise(
    config: TrainConfig, factors: Factors, before: Tensor, denoiser: Denoiser, shown: Sequence[ProbeBatch]
) -> float:
    """The mean loss of these pictures over what it is with the factors of `before`, each at the same four noises.

    Nothing is drawn from the run's generator, and the factors stay as they are.
    """
    after = _mean(config, denoiser, shown)
    with holding(factors.flat, before):
        return after / max(_mean(config, denoiser, shown), 1e-30)


def _mean(config: TrainConfig, denoiser: Denoiser, shown: Sequence[ProbeBatch]) -> float:
    noises, losses = torch.Generator().manual_seed(config.seed), []
    shares = (torch.arange(_LEVELS) + 0.5) / _LEVELS
    for x0, conditions, places in shown:
        for u in timesteps.quantile(config.objective, shares, denoiser.tokens(x0.shape)):
            sigma = denoiser.sigma(u.expand(len(x0))).to(x0.device)
            noise = torch.randn(x0.shape, generator=noises).to(x0.device)
            losses.append(objective.losses(denoiser, x0, noise, sigma, conditions, config.objective, places))
    return float(torch.cat(losses).mean())
