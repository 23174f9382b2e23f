"""Measures what a model draws under guidance, cheaply: a few steps of sampling from held-out pictures that are almost
noise, and how far the end is from the picture.

The loss alone misleads. Half of a LoRA's strength keeps nine tenths of its gain in loss and draws far less of the
concept, because guidance multiplies what the loss only sums. On the demo base and concepts of shape, colour and texture
(strengths 0.25 to 1.25, 50 to 200 steps) this figure orders LoRAs as the error of pictures drawn in full does: rank
correlation 0.85, where the loss has 0.3 and the guided estimate of a single step 0.1 to 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from .config import TrainConfig
from .objective import Denoiser
from .sample import Sample, place_weights
from .steps import brought
from .validation import Draw, noises_of

START, STEPS = 0.985, 4  # the quantile of the noise level to begin at, and the steps from there to a clean picture
MOST = 8  # pictures


def plan(draws: Sequence[Draw]) -> list[Draw]:
    """Return one draw for each of the first `MOST` pictures, with the noise of its last one."""
    own = {draw.picture: replace(draw, u=START) for draw in draws}
    return list(own.values())[:MOST]


def errors(
    draws: Sequence[Draw], config: TrainConfig, denoiser: Denoiser, samples: Sequence[Sample], device: torch.device,
    cfg: float, tick: Callable[[], None],
) -> Tensor:  # fmt: skip
    """Return the mean squared difference to the picture's latent of each draw, (batch,), with the loss's weights of
    places. `tick` is called after each step and may raise."""
    batch = [samples[draw.picture] for draw in draws]
    x0 = torch.stack([sample.latent for sample in batch])
    levels = denoiser.sigma(torch.tensor([[draw.u * (1 - i / STEPS) for draw in draws] for i in range(STEPS)]))
    places = place_weights(config.objective, batch)
    x0, noise, places, levels = brought([x0, noises_of(draws, x0.shape), places, levels], device)
    made = denoiser.noised(x0, noise, levels[0])
    for now, then in pairwise([*levels, torch.zeros_like(levels[0])]):
        estimate = guided(denoiser, made, now, batch, cfg)
        made = estimate + (then / now).view(-1, *(1 for _ in x0.shape[1:])) * (made - estimate)  # Euler's method
        tick()
    apart = (made - x0).square()
    return (apart if places is None else apart * places).flatten(1).mean(1)


def guided(denoiser: Denoiser, x_t: Tensor, sigma: Tensor, batch: Sequence[Sample], cfg: float) -> Tensor:
    """Return the estimate of x0 under classifier-free guidance, u + cfg (c - u); at 1 it is c alone."""
    told = denoiser.denoised(x_t, sigma, [sample.condition for sample in batch])
    if cfg == 1:
        return told
    plain = denoiser.denoised(x_t, sigma, [sample.unconditional for sample in batch])
    return torch.lerp(plain, told, cfg)
