"""DELLA (Deep et al. 2024, arXiv:2406.11617): DARE with better odds for larger entries, then TIES' election."""

import torch
from torch import Tensor

from .task import Task, elected_mean


def combine(task: Task) -> Tensor:
    """Entries are ranked within each LoRA; the chance to stay rises with the rank over a window around `density`, which
    is as wide as fits into [0, 1]."""
    cores, density = task.cores, task.density
    order = cores.abs().flatten(1).argsort(1).argsort(1).view(cores.shape).to(cores)
    centred = order / max(order[0].numel() - 1, 1) - 0.5
    chance = density + 2 * min(density, 1 - density) * centred * 0.9
    kept = torch.rand(cores.shape, generator=task.generator, dtype=cores.dtype) < chance
    return elected_mean(torch.where(kept, cores / chance, 0.0))
