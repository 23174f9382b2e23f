"""TSV-Merge (Gargiulo et al. 2024, arXiv:2412.00081): singular vectors of all LoRAs made orthogonal to each other.

The singular values stay what they were in their LoRAs; the vectors become the nearest orthonormal set (Procrustes).
Where the core has room for all vectors none is dropped, else each LoRA keeps its share of the strongest.
"""

import torch
from torch import Tensor

from .task import NOISE, Task


def combine(task: Task) -> Tensor:
    room = min(task.cores.shape[1:])
    left, sigma, right = torch.linalg.svd(task.cores, full_matrices=False)
    counts = (sigma > sigma[:, :1] * NOISE).sum(1)
    if counts.sum() > room:
        counts = counts.clamp(max=max(room // len(counts), 1))
    parts = list(zip(left, sigma, right, counts.tolist(), strict=True))[:room]
    stacked_left = torch.cat([vectors[:, :count] for vectors, _, _, count in parts], 1)
    stacked_right = torch.cat([vectors[:count] for _, _, vectors, count in parts])
    values = torch.cat([each[:count] for _, each, _, count in parts])
    return _nearest_orthonormal(stacked_left) * values @ _nearest_orthonormal(stacked_right)


def _nearest_orthonormal(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
