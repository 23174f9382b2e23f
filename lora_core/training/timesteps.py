"""Named laws for how noise levels are drawn in training.

A law maps randomness to u in (0, 1), where 0 is clean and 1 is pure noise; the denoiser turns u into its own sigma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .objective_config import SHIFTED, ObjectiveConfig

_FEW_TOKENS, _MANY_TOKENS = (256, 0.5), 4096  # all models start from this mean; 1024 x 1024 pixels
_FLUX_1 = math.exp(1.15)  # its shift at that


def draw(choices: ObjectiveConfig, count: int, generator: torch.Generator, tokens: float = 0.0) -> Tensor:
    """`count` values of u, fp32 on the CPU. `tokens` of 16 x 16 pixels make up one picture.

    `uniform`; `logit_normal`: sigmoid of a normal (Esser et al. 2024, arXiv:2403.03206). With `shifted` before it,
    either then goes through s u / (1 + (s - 1) u), the resolution shift of the same paper; of the logit-normal law that
    adds log(s) to its mean. `resolution_shifted`: the logit-normal law, shifted for the picture's size as FLUX.1 is
    when it is sampled. `shifted_by_size`: likewise, with the shift that was chosen at 1024 x 1024 pixels. `mode`: the
    mode law of that paper with heavy tails, whose scale moves u towards the middle.
    """
    if choices.timesteps in ("uniform", "shifted", "mode"):
        u = torch.rand(count, generator=generator)
    else:
        u = _logit_normal(choices, torch.randn(count, generator=generator))
    return _placed(choices, u, tokens)


def quantile(choices: ObjectiveConfig, share: Tensor, tokens: float = 0.0) -> Tensor:
    """The u below which the law draws that share, both in (0, 1)."""
    if choices.timesteps == "mode":
        return _placed(choices, 1 - share)  # which falls
    plain = choices.timesteps in ("uniform", "shifted")
    return _placed(choices, share if plain else _logit_normal(choices, torch.special.ndtri(share)), tokens)


def resolution_shift(tokens: float, shift: float = _FLUX_1) -> float:
    """The shift for a picture of so many tokens: exp(mu), mu linear, 0.5 at 256 tokens and log(shift) at 4096.

    So are FLUX.1 and FLUX.2 sampled, Qwen-Image and Krea 2, each with a shift of its own; FLUX.1's is the default.
    """
    (few, least), many, most = _FEW_TOKENS, _MANY_TOKENS, math.log(shift)
    return math.exp(least + (most - least) * (tokens - few) / (many - few))


def _logit_normal(choices: ObjectiveConfig, normal: Tensor) -> Tensor:
    return (choices.logit_mean + choices.logit_std * normal).sigmoid()


def _placed(choices: ObjectiveConfig, u: Tensor, tokens: float = 0.0) -> Tensor:
    """Return the u that the law makes of its draw from the uniform or the logit-normal law."""
    if choices.timesteps == "mode":
        return 1 - u - choices.mode_scale * ((math.pi / 2 * u).cos().square() - 1 + u)
    shift = choices.shift if choices.timesteps in SHIFTED else 1.0
    if choices.timesteps == "resolution_shifted":
        shift = resolution_shift(tokens)
    elif choices.timesteps == "shifted_by_size":
        shift = resolution_shift(tokens, shift)
    return u if shift == 1 else shift * u / (1 + (shift - 1) * u)
