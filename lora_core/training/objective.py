"""The training loss, in the model's own parameterisation.

For every ComfyUI family the denoised estimate is affine in the network output, `x0_pred = a x_t + b out`. Hence
`(x0_pred - x0) / b` is the residual of the output itself: eps, v, flow velocity or EDM's F, whatever the model
predicts.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from .inject import Factors
from .objective_config import ObjectiveConfig


class Denoiser(Protocol):
    """A diffusion model of any family. Sigmas are (batch,) tensors; latents are (batch, channels, ...)."""

    def sigma(self, u: Tensor) -> Tensor:
        """Return the noise level at quantile u in (0, 1) of the training schedule."""
        ...

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
        """Return the estimate of x0, one condition per sample, one forward per batch."""
        ...

    def output_scale(self, sigma: Tensor) -> Tensor:
        """b of `x0_pred = a x_t + b out`, (batch,)."""
        ...

    def snr(self, sigma: Tensor) -> Tensor:
        """Signal-to-noise ratio of x_t, (batch,)."""
        ...

    def tokens(self, shape: torch.Size) -> float:
        """Tokens of 16 x 16 pixels in a picture whose latents have this shape."""
        ...


def draw_noise(shape: torch.Size, offset: float, generator: torch.Generator) -> Tensor:
    """Standard normal noise, fp32 on the CPU; with an `offset`, plus a constant of that standard deviation for each
    sample and channel, so that eps and v models learn very dark and bright pictures (Guttenberg 2023)."""
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise += offset * torch.randn(*shape[:2], *(1 for _ in shape[2:]), generator=generator)
    return noise


def residual(denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
    """Network output minus its target, shaped like x0."""
    x0_pred = denoiser.denoised(denoiser.noised(x0, noise, sigma), sigma, conditions)
    return (x0_pred - x0) / per_sample(denoiser.output_scale(sigma), x0.ndim)


def preservation(denoiser: Denoiser, factors: Factors, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
    """Mean squared change of the network output against the base model's own answer, a scalar.

    With conditions that name the class but not the concept, it keeps everything else as it was, without class images
    (output preservation; the idea of prior preservation, Ruiz et al. 2022, arXiv:2208.12242, with the base as teacher).
    """
    with torch.no_grad(), factors.silence():
        base = denoiser.denoised(x_t, sigma, conditions)
    change = denoiser.denoised(x_t, sigma, conditions) - base
    return (change / per_sample(denoiser.output_scale(sigma), x_t.ndim)).square().mean()


def huber_threshold(choices: ObjectiveConfig, snr: Tensor) -> Tensor:
    """Return where the loss turns from square to linear, (batch,). `snr`: from 1 for clean samples down to huber_c for
    noise, (1 - c) / (1 + sigma)^2 + c (Khrapov et al. 2024, arXiv:2403.16728), sigma being noise over signal in any
    family."""
    c = choices.huber_c
    if choices.huber_schedule == "constant":
        return torch.full_like(snr, c)
    return (1 - c) / (1 + snr.rsqrt()).square() + c


def penalty(loss: str, residual: Tensor, threshold: Tensor) -> Tensor:
    """Return the loss of each value. `mse`: r^2. `huber`: pseudo-Huber, 2 c (sqrt(r^2 + c^2) - c), which is r^2 for
    small r or large c. `smooth_l1`: that over c, which is 2 |r| for large r or small c. As in sd-scripts; small r is
    exact."""
    square = residual.square()
    if loss == "mse":
        return square
    factor = 2 * threshold if loss == "huber" else 2
    return factor * square / ((square + threshold.square()).sqrt() + threshold)


def weight(name: str, snr: Tensor, output_scale: Tensor, gamma: float = 5.0) -> Tensor:
    """Loss weight per sample for a residual in output space, (batch,).

    The first two laws are defined on the x0 error, where they do not depend on the parameterisation; b^2 carries them
    over. `min_snr`: min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556), i.e. min(SNR, gamma) / SNR for eps and
    min(SNR, gamma) / (SNR + 1) for v. `debiased`: sqrt(SNR) (Yu et al. 2023, arXiv:2310.08442). `cosmap`: of a flow
    model's output, as if its noise levels were those of a cosine schedule (Esser et al. 2024, arXiv:2403.03206).
    """
    if name == "min_snr":
        return snr.clamp(max=gamma) * output_scale.square()
    if name == "debiased":
        return snr.sqrt() * output_scale.square()
    if name == "cosmap":
        t = 1 / (1 + snr.sqrt())
        return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))
    return torch.ones_like(snr)


def losses(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditions: list[Any],
    choices: ObjectiveConfig,
    places: Tensor | None = None,
) -> Tensor:
    """Weighted mean loss of each sample, (batch,) in fp32 or wider. `places`: further weights, broadcast to x0."""
    return weighted(denoiser, residual(denoiser, x0, noise, sigma, conditions), sigma, choices, places)


def weighted(
    denoiser: Denoiser, apart: Tensor, sigma: Tensor, choices: ObjectiveConfig, places: Tensor | None = None
) -> Tensor:
    """`losses` of a residual that is known, shaped like x0."""
    snr = denoiser.snr(sigma)
    each = penalty(choices.loss, apart, per_sample(huber_threshold(choices, snr), apart.ndim))
    if places is not None:
        each = each * places
    return each.flatten(1).mean(1) * weight(choices.weighting, snr, denoiser.output_scale(sigma), choices.snr_gamma)


def loss(*args: Any, **kwargs: Any) -> Tensor:
    """The mean of `losses`, a scalar."""
    return losses(*args, **kwargs).mean()


def per_sample(value: Tensor, ndim: int) -> Tensor:
    return value.view(-1, *(1 for _ in range(ndim - 1)))
