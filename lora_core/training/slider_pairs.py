"""Defines the objective of a slider of pictures, by the image pairs of Concept Sliders (Gandikota et al. 2023,
arXiv:2311.12092).

Of two pictures that differ in nothing but what is to be moved, the network is taught to draw the one with more of it at
a strength and the one with less at its opposite (equation 9), both in each step, under one caption and at the same
noise and noise level: what the two have in common has no sign, and is not learned by either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.task import LearnSliderPairs
from . import objective
from .config import TrainConfig
from .ends import End, both
from .inject import Factors
from .objective import Denoiser
from .preserving import add_preservation
from .slider_response import USED_AT, Measure, View, measured


@dataclass(frozen=True)
class PairSlider:
    """Learns a slider from pairs: latents are (batch, 2, channels, ...), the picture with more first."""

    choice: LearnSliderPairs
    name = LearnSliderPairs.name
    replays = draws = False
    used_at = USED_AT

    def add_gradient(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], kept: list[Any], places: Tensor | None = None, levels: Tensor | None = None,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        ends = self._ends(config, denoiser, x0, noise, sigma, conditions, places)
        total, held = both(factors, ends, share / config.accumulation), sigma if levels is None else levels
        return total, add_preservation(config, factors, denoiser, x0[:, 0], noise, held, kept, share)

    def losses(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return both(factors, self._ends(config, denoiser, x0, noise, sigma, conditions, places))

    def _ends(
        self, config: TrainConfig, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: list[Any],
        places: Tensor | None,
    ) -> list[End]:  # fmt: skip
        """Return both strengths, each with the loss of the picture that is drawn there."""
        return [
            (sign * self.choice.strength,
             partial(objective.losses, denoiser, own, noise, sigma, conditions, config.objective, places))
            for sign, own in zip((1, -1), x0.unbind(1), strict=True)
        ]  # fmt: skip

    def shown(self, x0: Tensor) -> Tensor:
        return x0[:, 0]

    def condition(self, text: Any) -> Any:
        return text

    def says(self, factors: Factors, pictures: Sequence[int], losses: Sequence[float], measure: Measure) -> str:
        return f"{measured(measure, self.views).sentence()}."

    def views(
        self, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: list[Any]
    ) -> list[View]:  # fmt: skip
        """Both noisy pictures, in each of which the network's picture is asked to move along what lies between them."""
        apart, found = self.choice.guidance * (x0[:, 0] - x0[:, 1]), []
        with torch.no_grad(), factors.silence():
            for own in x0.unbind(1):
                x_t = denoiser.noised(own, noise, sigma)
                found.append(View(x_t, conditions, denoiser.denoised(x_t, sigma, conditions), apart))
        return found
