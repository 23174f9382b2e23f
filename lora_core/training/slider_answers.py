"""Asks a base model what a slider's prompts come to: where its answers are to be moved, and how far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .inject import Factors
from .objective import Denoiser

Told: TypeAlias = Sequence[Any]  # conditions of a neutral prompt, and of the same with more and with less


@dataclass(frozen=True)
class Answers:
    """Holds the base's answers to noisy latents: its estimate for the neutral prompt, and how far apart, times the
    guidance, those for more and for less are; both shaped like the latents."""

    neutral: Tensor
    apart: Tensor


@torch.no_grad()
def answers(
    denoiser: Denoiser, factors: Factors, x_t: Tensor, sigma: Tensor, told: list[Told], guidance: float
) -> Answers:
    with factors.silence():
        neutral, more, less = (denoiser.denoised(x_t, sigma, list(each)) for each in zip(*told, strict=True))
    return Answers(neutral, guidance * (more - less))
