"""Orthogonalised sum: what LoRAs share counts once, in the spirit of DO-Merging (Zheng et al. 2025, arXiv:2505.15875).

Every LoRA keeps its length; their directions are replaced by the nearest orthonormal ones (Loewdin 1950,
doi:10.1063/1.1747632), which unlike Gram-Schmidt favours none. LoRAs that are orthogonal already are just added.
"""

import torch
from torch import Tensor

from .task import Task


def combine(task: Task) -> Tensor:
    lengths = task.cores.norm(dim=(1, 2))
    rows = task.cores.flatten(1) / lengths.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return (lengths @ (left @ right)).view(task.cores.shape[1:])
