"""Defines the objective of a slider: Concept Sliders, Gandikota et al. 2023, arXiv:2311.12092.

The network's answer to a neutral prompt is taught to be the base's own, moved by the guidance times the difference of
the base's answers to more and to less of something (equation 8), in the model's own parameterisation: at a strength
that many times. Each step does so at both ends of the range that a slider is used in, so that the LoRA moves as far one
way as the other, and in between by nearly the same from step to step. On the demo base that makes it more even than
steps at -1 and 1, and it changes less aside at 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..data.slider import LearnSlider
from . import objective
from .config import TrainConfig
from .ends import End, both
from .inject import Factors
from .objective import Denoiser
from .preserving import add_preservation
from .slider_answers import Answers, Told, answers
from .slider_response import USED_AT, Measure, View, measured

ENDS = (2.0, -2.0)  # strengths


def losses(
    config: TrainConfig, denoiser: Denoiser, x_t: Tensor, sigma: Tensor, told: list[Told], base: Answers,
    strength: float, places: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Weighted loss of each sample, (batch,) in fp32 or wider, of factors that are at that strength."""
    found = denoiser.denoised(x_t, sigma, [neutral for neutral, _, _ in told])
    scale = objective.per_sample(denoiser.output_scale(sigma), x_t.ndim)
    apart = (found - base.neutral - strength * base.apart) / scale
    return objective.weighted(denoiser, apart, sigma, config.objective, places)


@dataclass(frozen=True)
class Slider:
    """Learns to move pictures from less to more of something. Conditions of samples are `Told`."""

    choice: LearnSlider
    name = LearnSlider.name
    replays = draws = False
    used_at = USED_AT

    def add_gradient(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], kept: list[Any], places: Tensor | None = None, levels: Tensor | None = None,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        ends = self._ends(config, factors, denoiser, x0, noise, sigma, conditions, places)
        total, held = both(factors, ends, share / config.accumulation), sigma if levels is None else levels
        return total, add_preservation(config, factors, denoiser, x0, noise, held, kept, share)

    def losses(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return both(factors, self._ends(config, factors, denoiser, x0, noise, sigma, conditions, places))

    def _ends(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Told], places: Tensor | None,
    ) -> list[End]:  # fmt: skip
        x_t = denoiser.noised(x0, noise, sigma)
        base = self._answers(factors, denoiser, x_t, sigma, conditions)
        return [
            (strength, partial(losses, config, denoiser, x_t, sigma, conditions, base, strength, places))
            for strength in ENDS
        ]

    def _answers(
        self, factors: Factors, denoiser: Denoiser, x_t: Tensor, sigma: Tensor, conditions: list[Any]
    ) -> Answers:  # fmt: skip
        return answers(denoiser, factors, x_t, sigma, conditions, self.choice.guidance)

    def shown(self, x0: Tensor) -> Tensor:
        return x0

    def condition(self, text: Any) -> Told:
        return text, text, text

    def says(self, factors: Factors, pictures: Sequence[int], losses: Sequence[float], measure: Measure) -> str:
        return f"{measured(measure, self.views).sentence()}."

    def views(
        self, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: list[Told]
    ) -> list[View]:  # fmt: skip
        """The noisy pictures under the neutral prompts, compared as what the network gives."""
        x_t = denoiser.noised(x0, noise, sigma)
        base = self._answers(factors, denoiser, x_t, sigma, conditions)
        scale = objective.per_sample(denoiser.output_scale(sigma), x0.ndim)
        return [View(x_t, [neutral for neutral, _, _ in conditions], base.neutral, base.apart, scale)]
