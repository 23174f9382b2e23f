"""Named laws for how noise levels are drawn in training.

A law maps randomness to u in (0, 1), where 0 is clean and 1 is pure noise; the denoiser turns u into its own sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(law: str, count: int, shift: float, generator: torch.Generator) -> Tensor:
    """`count` values of u, fp32 on the CPU.

    `uniform`; `logit_normal`: sigmoid of a standard normal (Esser et al. 2024, arXiv:2403.03206, m = 0, s = 1);
    `shifted`: uniform, then s u / (1 + (s - 1) u), the resolution shift of the same paper.
    """
    if law == "logit_normal":
        return torch.randn(count, generator=generator).sigmoid()
    u = torch.rand(count, generator=generator)
    return shift * u / (1 + (shift - 1) * u) if law == "shifted" else u
