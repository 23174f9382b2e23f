"""SLERP (Shoemake 1985, doi:10.1145/325334.325242): along the great circle from one LoRA to the other.

Where on it, strength decides: equal strengths meet in the middle. The length is interpolated likewise.
"""

import torch
from torch import Tensor

from .task import Task


def combine(task: Task) -> Tensor:
    """For two LoRAs. Opposite directions have no great circle between them; there the straight line is taken."""
    share = task.strengths.abs() / task.strengths.abs().sum()
    lengths = task.cores.norm(dim=(1, 2))
    first, second = task.cores / lengths.clamp(min=torch.finfo(torch.float64).tiny)[:, None, None]
    angle = torch.arccos((first * second).sum().clamp(-1, 1))
    weights = torch.sin(angle * share) / torch.sin(angle) if 1e-6 < angle < torch.pi - 1e-6 else share
    return (weights[0] * first + weights[1] * second) * (share * lengths).sum()
