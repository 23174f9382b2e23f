"""The loss of preference: a LoRA learns from pairs what people like, with its own base as the reference.

Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908). Let E be the mean squared residual of the network's output, of
the liked picture (w) and the disliked one (l) at the same noise and noise level, and E_base that of the base model. The
margin is `beta / 2 ((E_base - E)_w - (E_base - E)_l)`, and the loss `-log sigmoid(margin)`: log 2 of an untouched LoRA.
The mean stands for the paper's sum, as in its authors' code, where beta is 2000 to 5000. Of flow models the residual is
that of the velocity, and beta the same at all levels (Liu et al. 2025, arXiv:2501.13918).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ..data.task import LearnPreference
from ..percent import percent
from . import objective
from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser
from .preserving import add_preservation

_SURE = 1.96  # standard errors on each side of a win rate


@dataclass(frozen=True)
class Preference:
    """Learns from pairs: latents are (batch, 2, channels, ...), the liked picture first."""

    choice: LearnPreference
    name = LearnPreference.name
    replays = draws = False
    used_at = "No strength is suggested: the run learns from preference pairs, and is not measured against pictures."

    def add_gradient(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], kept: list[Any], places: Tensor | None = None, levels: Tensor | None = None,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        losses = self.losses(config, factors, denoiser, x0, noise, sigma, conditions)
        (losses.mean() / (config.accumulation / share)).backward()
        at = sigma if levels is None else levels
        return losses.detach(), add_preservation(config, factors, denoiser, x0[:, 0], noise, at, kept, share)

    def losses(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        liked, disliked = _gains(config, factors, denoiser, x0, noise, sigma, conditions).unbind(1)
        return functional.softplus(-0.5 * self.choice.beta * (liked - disliked))

    def shown(self, x0: Tensor) -> Tensor:
        return x0[:, 0]

    def condition(self, text: Any) -> Any:
        return text

    def says(
        self, factors: Factors, pictures: Sequence[int], losses: Sequence[float], measure: Callable[..., list[float]]
    ) -> str:
        wins, count = win_rate(pictures, losses)
        low, high = likely(wins, count)
        against = (
            "" if low > 0.5 else ", which chance alone can give" if high >= 0.5 else ", which is worse than chance"
        )
        rate = (
            f"Win rate: the LoRA prefers the liked picture of {wins} of {count} pairs, {100 * wins / count:.0f} % "
            f"(95 % confidence: {100 * low:.0f} to {100 * high:.0f} %; chance: 50 %){against}."
        )
        return f"{rate} {_moved(mean(measure(liked_gain)))}"


def _gains(
    config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
    conditions: list[Any],
) -> Tensor:  # fmt: skip
    """Return by how much the loss of both pictures is below the base model's, (batch, 2)."""
    given = rearrange(x0, "b two ... -> (two b) ..."), noise.repeat(2, *(1 for _ in noise.shape[1:])), sigma.repeat(2)
    batch = denoiser, *given, conditions * 2, config.objective
    with torch.no_grad(), factors.silence():
        base = objective.losses(*batch)
    return rearrange(base - objective.losses(*batch), "(two b) -> b two", two=2)


def liked_losses(
    config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
    conditions: list[Any], places: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the loss of the liked pictures as pictures, (batch,)."""
    return objective.losses(denoiser, x0[:, 0], noise, sigma, conditions, config.objective)


def liked_gain(config: TrainConfig, factors: Factors, *batch: Any) -> Tensor:
    """Return by what share of the base model's the loss of the liked pictures is below it, (batch,)."""
    with torch.no_grad(), factors.silence():
        base = liked_losses(config, factors, *batch)
    return 1 - liked_losses(config, factors, *batch) / base


def _moved(gain: float) -> str:
    """Say what became of liked pictures: where both pictures of a pair get worse, the disliked one only more so, what
    is drawn gets worse too (arXiv:2511.03317)."""
    share = percent(abs(gain))
    if gain >= 0:
        return f"The loss of liked pictures alone is {share} below the base model's."
    return (
        f"The loss of liked pictures alone is {share} above the base model's: if pictures get worse, raise beta or "
        "train fewer steps."
    )


def margins(losses: Sequence[float]) -> np.ndarray:
    """Return the margins of which these are the losses: positive where the liked picture is preferred."""
    given = np.maximum(np.asarray(losses, dtype=np.float64), 1e-40)
    return -(given + np.log(-np.expm1(-given)))


def win_rate(pictures: Sequence[int], losses: Sequence[float]) -> tuple[int, int]:
    """Return the pairs whose liked picture is preferred, by their mean margin, and all pairs. `pictures` names the pair
    of each loss."""
    found, owners = margins(losses), np.asarray(pictures)
    means = [float(found[owners == each].mean()) for each in sorted(set(pictures))]
    return sum(each > 0 for each in means), len(means)


def likely(wins: int, count: int) -> tuple[float, float]:
    """Return between which shares the rate lies with 95 % confidence (Wilson 1927)."""
    share, z = wins / count, _SURE**2 / count
    middle, half = share + z / 2, _SURE * sqrt(share * (1 - share) / count + z / (4 * count))
    return (middle - half) / (1 + z), (middle + half) / (1 + z)
