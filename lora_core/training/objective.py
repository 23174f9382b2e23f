"""The training loss, in the model's own parameterisation.

For every ComfyUI family the denoised estimate is affine in the network output, `x0_pred = a x_t + b out`. Hence
`(x0_pred - x0) / b` is the residual of the output itself: eps, v, flow velocity or EDM's F, whatever the model
predicts.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .inject import Factors


class Denoiser(Protocol):
    """A diffusion model of any family. Sigmas are (batch,) tensors; latents are (batch, channels, ...)."""

    def sigma(self, u: Tensor) -> Tensor:
        """The noise level at quantile u in (0, 1) of the training schedule."""
        ...

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
        """The estimate of x0, one condition per sample, one forward per batch."""
        ...

    def output_scale(self, sigma: Tensor) -> Tensor:
        """b of `x0_pred = a x_t + b out`, (batch,)."""
        ...

    def snr(self, sigma: Tensor) -> Tensor:
        """Signal-to-noise ratio of x_t, (batch,)."""
        ...


def residual(denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
    """Network output minus its target, shaped like x0."""
    x0_pred = denoiser.denoised(denoiser.noised(x0, noise, sigma), sigma, conditions)
    return (x0_pred - x0) / _per_sample(denoiser.output_scale(sigma), x0.ndim)


def preservation(denoiser: Denoiser, factors: Factors, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
    """Mean squared change of the network output against the base model's own answer, a scalar.

    With conditions that name the class but not the concept, it keeps everything else as it was, without class images
    (output preservation; the idea of prior preservation, Ruiz et al. 2022, arXiv:2208.12242, with the base as teacher).
    """
    with torch.no_grad(), factors.silence():
        base = denoiser.denoised(x_t, sigma, conditions)
    change = denoiser.denoised(x_t, sigma, conditions) - base
    return (change / _per_sample(denoiser.output_scale(sigma), x_t.ndim)).square().mean()


def weight(name: str, snr: Tensor, output_scale: Tensor, gamma: float = 5.0) -> Tensor:
    """Loss weight per sample for a residual in output space, (batch,).

    The laws are defined on the x0 error, where they do not depend on the parameterisation; b^2 carries them over.
    `min_snr`: min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556), i.e. min(SNR, gamma) / SNR for eps and
    min(SNR, gamma) / (SNR + 1) for v. `debiased`: sqrt(SNR) (Yu et al. 2023, arXiv:2310.08442).
    """
    if name == "min_snr":
        return snr.clamp(max=gamma) * output_scale.square()
    if name == "debiased":
        return snr.sqrt() * output_scale.square()
    return torch.ones_like(snr)


def losses(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditions: list[Any],
    weighting: str,
    gamma: float = 5.0,
) -> Tensor:
    """Weighted mean squared residual of each sample, (batch,) in fp32 or wider."""
    square = residual(denoiser, x0, noise, sigma, conditions).square().flatten(1).mean(1)
    return square * weight(weighting, denoiser.snr(sigma), denoiser.output_scale(sigma), gamma)


def loss(*args, **kwargs) -> Tensor:
    """The mean of `losses`, a scalar."""
    return losses(*args, **kwargs).mean()


def _per_sample(value: Tensor, ndim: int) -> Tensor:
    return value.view(-1, *(1 for _ in range(ndim - 1)))
