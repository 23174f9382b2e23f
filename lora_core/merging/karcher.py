"""Karcher mean (Karcher 1977, doi:10.1002/cpa.3160300502): the mean direction on the sphere, for any number of LoRAs.

Directions count by strength, the length is the mean length. Of two LoRAs it is SLERP, and
likewise the straight line where they are opposite and no great circle is the one.
"""

import torch
from torch import Tensor

from .task import Task

_STEPS, _ENOUGH = 100, 1e-12
_OPPOSITE = -1 + 1e-12  # cosine of the mean and a direction that no circle leads to


def combine(task: Task) -> Tensor:
    share = (task.strengths.abs() / task.strengths.abs().sum())[:, None, None]
    lengths = task.cores.norm(dim=(1, 2))[:, None, None]
    directions = task.cores / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    line = (share * directions).sum(0)
    mean = _unit(line)
    for _ in range(_STEPS):
        if line.norm() < 1e-6 or (mean * directions).sum((1, 2)).min() < _OPPOSITE:
            return line * (share * lengths).sum()
        step = (share * _logarithm(mean, directions)).sum(0)
        size = step.norm()
        if size < _ENOUGH:
            break
        mean = _unit(torch.cos(size) * mean + torch.sin(size) * step / size)
    return mean * (share * lengths).sum()


def _unit(direction: Tensor) -> Tensor:
    return direction / direction.norm().clamp(min=torch.finfo(torch.float64).tiny)


def _logarithm(base: Tensor, points: Tensor) -> Tensor:
    """The way from `base` to each point along the sphere, as a vector that is tangent to it at `base`."""
    cosine = (base * points).sum((1, 2)).clamp(-1, 1)[:, None, None]
    tangent = points - cosine * base
    length = tangent.norm(dim=(1, 2)).clamp(min=torch.finfo(torch.float64).tiny)[:, None, None]
    return tangent * (torch.arccos(cosine) / length)
