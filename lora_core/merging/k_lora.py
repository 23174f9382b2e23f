"""K-LoRA (Ouyang et al. 2025, arXiv:2502.18461): in each layer the LoRA that stands out most there, alone.

What stands out is measured by a LoRA's energy in the layer against its energy in all layers. The paper adds up the K
largest entries, which is another number in every basis, and changes the odds over the sampling steps, which a merged
file cannot; here they are even.
"""

import torch
from torch import Tensor

from .task import Task


def combine(task: Task) -> Tensor:
    norms = task.norms.clamp(min=torch.finfo(torch.float64).tiny)  # a LoRA that does nothing stands out nowhere
    return task.cores[int((task.cores.norm(dim=(1, 2)) / norms).argmax())]
