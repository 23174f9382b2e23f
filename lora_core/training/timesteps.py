"""Named laws for how noise levels are drawn in training.

A law maps randomness to u in (0, 1), where 0 is clean and 1 is pure noise; the denoiser turns u into its own sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import SHIFTED


def draw(law: str, count: int, shift: float, generator: torch.Generator) -> Tensor:
    """`count` values of u, fp32 on the CPU.

    `uniform`; `logit_normal`: sigmoid of a standard normal (Esser et al. 2024, arXiv:2403.03206, m = 0, s = 1). With
    `shifted` before it, either then goes through s u / (1 + (s - 1) u), the resolution shift of the same paper; of the
    logit-normal law that is m = log(s).
    """
    if law.endswith("logit_normal"):
        u = torch.randn(count, generator=generator).sigmoid()
    else:
        u = torch.rand(count, generator=generator)
    return _shifted(law, u, shift)


def quantile(law: str, share: Tensor, shift: float) -> Tensor:
    """The u below which the law draws that share, both in (0, 1)."""
    return _shifted(law, torch.special.ndtri(share).sigmoid() if law.endswith("logit_normal") else share, shift)


def _shifted(law: str, u: Tensor, shift: float) -> Tensor:
    return shift * u / (1 + (shift - 1) * u) if law in SHIFTED else u
