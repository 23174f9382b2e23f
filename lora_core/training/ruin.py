"""Whether an update has ruined what it should improve, measured on pictures at hand at equal noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ranks.group import ALONE, Group
from ..swap import holding
from . import objective, timesteps
from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser

_LEVELS = 4  # noise levels, in the middle of equal shares of the timestep law

Sums = list[float]  # of losses now, and before


class ProbeBatch(NamedTuple):
    """Holds what a micro-batch is made of, on the device: rows from the `first` on, of so many as it has on all ranks
    together; 0 for no others."""

    x0: Tensor
    conditions: list[Any]
    places: Tensor | None
    first: int = 0
    rows: int = 0


def rise(
    config: TrainConfig, factors: Factors, before: Tensor, denoiser: Denoiser, shown: Sequence[ProbeBatch],
    group: Group = ALONE, patient: Callable[[Callable[[], Sums]], Sums] = lambda work: work(),
) -> float:  # fmt: skip
    """The mean loss of these pictures over what it is with the factors of `before`, each at the same four noises.

    Nothing is drawn from the run's generator, and the factors stay as they are. Ranks have a share of the pictures
    each; `patient` measures this rank's, once more if it must.
    """
    found = group.every(lambda: patient(partial(_sums, config, factors, before, denoiser, shown)))
    after, earlier = (sum(each) for each in zip(*found, strict=True))
    return after / max(earlier, 1e-30)


@torch.no_grad()
def _sums(
    config: TrainConfig, factors: Factors, before: Tensor, denoiser: Denoiser, shown: Sequence[ProbeBatch]
) -> Sums:
    after = _sum(config, denoiser, shown)
    with holding(factors.flat, before):
        return [after, _sum(config, denoiser, shown)]


def _sum(config: TrainConfig, denoiser: Denoiser, shown: Sequence[ProbeBatch]) -> float:
    noises, losses = torch.Generator().manual_seed(config.seed), [torch.zeros(0)]
    shares = (torch.arange(_LEVELS) + 0.5) / _LEVELS
    for x0, conditions, places, first, rows in shown:
        for u in timesteps.quantile(config.objective, shares, denoiser.tokens(x0.shape)):
            noise = torch.randn((rows or len(x0), *x0.shape[1:]), generator=noises)[first : first + len(x0)]
            if conditions:
                sigma = denoiser.sigma(u.expand(len(x0))).to(x0.device)
                own = x0, noise.to(x0.device), sigma, conditions
                losses.append(objective.losses(denoiser, *own, config.objective, places).cpu())
    return float(torch.cat(losses).double().sum())
