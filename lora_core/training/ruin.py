"""Whether an update has ruined what it should improve, measured on pictures at hand at equal noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ranks.group import ALONE, Group
from ..swap import holding
from . import timesteps
from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser
from .tasks import PICTURES, Task, probe_of

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
    task: Task = PICTURES,
) -> float:  # fmt: skip
    """The mean loss of these pictures over what it is with the factors of `before`, each at the same four noises.

    Nothing is drawn from the run's generator, and the factors stay as they are. Ranks have a share of the pictures
    each; `patient` measures this rank's, once more if it must.
    """
    found = group.every(lambda: patient(partial(_sums, config, factors, before, denoiser, shown, task)))
    after, earlier = (sum(each) for each in zip(*found, strict=True))
    return after / max(earlier, 1e-30)


@torch.no_grad()
def _sums(
    config: TrainConfig, factors: Factors, before: Tensor, denoiser: Denoiser, shown: Sequence[ProbeBatch],
    task: Task = PICTURES,
) -> Sums:  # fmt: skip
    after = _sum(config, factors, denoiser, shown, task)
    with holding(factors.flat, before):
        return [after, _sum(config, factors, denoiser, shown, task)]


def _sum(config: TrainConfig, factors: Factors, denoiser: Denoiser, shown: Sequence[ProbeBatch], task: Task) -> float:
    noises, losses = torch.Generator().manual_seed(config.seed), [torch.zeros(0)]
    shares = (torch.arange(_LEVELS) + 0.5) / _LEVELS
    measured = probe_of(task)
    for x0, conditions, places, first, rows in shown:
        shape = task.shown(x0).shape
        for u in timesteps.quantile(config.objective, shares, denoiser.tokens(shape)):
            noise = torch.randn((rows or len(x0), *shape[1:]), generator=noises)[first : first + len(x0)]
            if conditions:
                sigma = denoiser.sigma(u.expand(len(x0))).to(x0.device)
                own = x0, noise.to(x0.device), sigma, conditions
                losses.append(measured(config, factors, denoiser, *own, places).cpu())
    return float(torch.cat(losses).double().sum())
