"""K-LoRA (Ouyang et al. 2025, arXiv:2502.18461): in each layer the LoRA that stands out most there, alone.

What stands out is measured by a LoRA's energy in the layer against its energy in all layers. The paper adds up the K
largest entries, which is another number in every basis, and changes the odds over the sampling steps, which a merged
file cannot; here they are even. Of LoRAs that stand out alike, the strongest.
"""

import torch
from torch import Tensor

from .task import NOISE, Task


def combine(task: Task) -> Tensor:
    norms = task.norms.clamp(min=torch.finfo(torch.float64).tiny)  # a LoRA that does nothing stands out nowhere
    energies = task.cores.norm(dim=(1, 2))
    shares = energies / norms
    return task.cores[int(torch.where(shares > shares.max() * (1 - NOISE), energies, -1.0).argmax())]
