"""Iso-C (Marczak et al. 2025, arXiv:2502.04959): the sum with all its singular values made equal.

Strong for many task LoRAs that drown each other, risky for styles: what was faint becomes as loud as the rest.
"""

import torch
from torch import Tensor

from .task import NOISE, Task


def combine(task: Task) -> Tensor:
    left, sigma, right = torch.linalg.svd(task.cores.sum(0), full_matrices=False)
    real = sigma > sigma[0] * NOISE
    return left[:, real] @ right[real] * (sigma.sum() / max(int(real.sum()), 1))
