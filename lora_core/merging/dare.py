"""DARE (Yu et al. 2023, arXiv:2311.03099): drop entries at random, scale up the rest, add. The sum on average."""

import torch
from torch import Tensor

from .task import Task


def combine(task: Task) -> Tensor:
    kept = torch.rand(task.cores.shape, generator=task.generator, dtype=task.cores.dtype) < task.density
    return torch.where(kept, task.cores / task.density, 0.0).sum(0)
