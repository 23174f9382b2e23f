"""Orthogonalised sum: what LoRAs share is not counted double, in the spirit of DO-Merging (Zheng et al. 2025,
arXiv:2505.15875).

Every LoRA keeps its length; their directions are replaced by the nearest orthonormal ones (Loewdin 1950,
doi:10.1063/1.1747632), which unlike Gram-Schmidt favours none. LoRAs that are orthogonal already are just added, and
all are together as loud as if they were: two twins 1.41 times as loud as one.
"""

import torch
from torch import Tensor

from .task import Task, nearest_orthonormal


def combine(task: Task) -> Tensor:
    lengths = task.cores.norm(dim=(1, 2))
    rows = task.cores.flatten(1) / lengths.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return (lengths @ nearest_orthonormal(rows)).view(task.cores.shape[1:])
