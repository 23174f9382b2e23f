"""Chooses which pictures of a step are learned under the empty caption."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TrainConfig

CLEAR = 0.6  # share of noise in a flow model's picture, below which what is shown can be seen


def is_clear(snr: Tensor, share: float = CLEAR) -> Tensor:
    """Return for each picture whether what it shows can be seen, by its signal-to-noise ratio: whether it is that of a
    flow model's picture with less than this share of noise."""
    return snr > ((1 - share) / share) ** 2


def dropped(config: TrainConfig, snr: Tensor, generator: torch.Generator) -> list[bool]:
    """Draw for each picture, whose signal-to-noise ratio is given, whether its caption is left out.

    `clear_dropout` is for pictures in which the concept can be seen through the noise. There the answer to the empty
    caption learns to draw it as well, so that guidance, which multiplies the distance of the two answers, does not
    exaggerate it; what is drawn at all is decided before, in the noise, where both stay apart.
    """
    rates = torch.where(is_clear(snr), max(config.clear_dropout, config.caption_dropout), config.caption_dropout)
    return (torch.rand(len(snr), generator=generator) < rates).tolist()
