"""NP-LoRA (Chen et al. 2025, arXiv:2511.11051): the first LoRA is protected, the others keep off what it reads.

Each LoRA is projected onto the null space of all before it: its answer to inputs that they respond to is removed.
"""

import torch
from torch import Tensor

from .task import NOISE, Task


def combine(task: Task) -> Tensor:
    """Put the LoRA that matters most first: the result does to its inputs exactly what it did alone."""
    total, free = torch.zeros_like(task.cores[0]), torch.eye(task.cores.shape[2], dtype=task.cores.dtype)
    for core in task.cores:
        kept = core @ free
        total, free = total + kept, free - _read(kept, core.norm())
    return total


def _read(core: Tensor, size: Tensor) -> Tensor:
    """The projector (q, q) onto inputs to which `core` responds by more than what rounding leaves of `size`."""
    _, sigma, rows = torch.linalg.svd(core, full_matrices=False)
    rows = rows[sigma > size * NOISE]
    return rows.T @ rows
