"""TSV-Merge (Gargiulo et al. 2024, arXiv:2412.00081): singular vectors of all LoRAs made orthogonal to each other.

The singular values stay what they were in their LoRAs; the vectors become the nearest orthonormal set (Procrustes).
Where the weight has room for all vectors none is dropped, else each LoRA keeps its share of the strongest. Directions
that LoRAs have in common stay one: of twins the merge is the twin.
"""

import torch
from torch import Tensor

from .task import NOISE, Task, nearest_orthonormal


def combine(task: Task) -> Tensor:
    left, sigma, right = torch.linalg.svd(task.cores, full_matrices=False)
    counts = (sigma > sigma[:, :1] * NOISE).sum(1)
    if counts.sum() > task.room:
        counts = counts.clamp(max=max(task.room // len(counts), 1))
    found = zip(left, sigma, right, counts.tolist(), strict=True)
    parts = [(vectors.T[:count], values[:count], reads[:count]) for vectors, values, reads, count in found]
    written, values, read = map(torch.cat, zip(*parts, strict=True))
    taken = values.argsort(descending=True, stable=True)[: task.room]
    return nearest_orthonormal(written[taken]).T * values[taken] @ nearest_orthonormal(read[taken])
