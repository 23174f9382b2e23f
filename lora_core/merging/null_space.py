"""NP-LoRA (Chen et al. 2025, arXiv:2511.11051): the first LoRA is protected, the others keep off what it reads.

Each LoRA is projected onto the null space of all before it: its answer to inputs that they respond to is removed.
"""

import torch
from torch import Tensor

from .task import NOISE, Task


def combine(task: Task) -> Tensor:
    """Put the LoRA that matters most first: the result does to its inputs exactly what it did alone."""
    total, *others = task.cores
    free = _free_of(total)
    for core in others:
        total = total + core @ free
        free = _free_of(total)
    return total


def _free_of(core: Tensor) -> Tensor:
    """The projector (q, q) onto inputs that `core` maps to zero."""
    _, sigma, read = torch.linalg.svd(core, full_matrices=False)
    read = read[sigma > sigma[0] * NOISE]
    return torch.eye(core.shape[1], dtype=core.dtype) - read.T @ read
