"""Neutral states of a base: what passes through it while it draws neutral prompts, in few steps and by itself."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.denoiser import ComfyDenoiser
from ..model.text_encoders import Caption, windows

FORWARDS = 288  # of single pictures, at most: as much as 96 steps of training
_MOST_LEVELS = 12
_SEED, _GOLDEN = 20_261_130, 0.618_034  # multiples of the latter fall evenly between 0 and 1
_TOKENS, _MOST_ROWS = 4096, 16  # of a forward


@dataclass(frozen=True)
class Way:
    """Says how neutral states are made: noise levels of each prompt, guidance, and the latent (channels, ...)."""

    levels: int
    cfg: float
    shape: tuple[int, ...]


def way_of(prompts: int, shape: tuple[int, ...]) -> Way:
    """Spread the forwards over so many prompts. Levels count for more than guidance, which would halve them."""
    return Way(min(max(FORWARDS // max(prompts, 1), 1), _MOST_LEVELS), 1.0, shape)


@torch.no_grad()
def drawn(denoiser: ComfyDenoiser, conditions: Sequence[Any], empty: Any, way: Way) -> Generator[int, None, None]:
    """Draw every prompt, of its `conditions` as the denoiser takes them, by Euler's method; yield after every forward
    how many prompts are done.

    Each has noise levels of its own, so that all of them together look at the whole range. Prompts with texts of
    different lengths never share a forward, as what pads them would count as text.
    """
    generator, done = torch.Generator().manual_seed(_SEED), 0
    for own in _batches(conditions, _rows(denoiser, way)):
        sigmas = schedule(denoiser, way.levels, torch.arange(done, done + len(own)))
        x = _noise(denoiser, sigmas[0], way, generator)
        for level, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            found = denoiser.denoised(x, level, own)
            yield done
            if way.cfg != 1:
                found = torch.lerp(denoiser.denoised(x, level, [empty] * len(own)), found, way.cfg)
                yield done
            x = x + (x - found) * _per_picture(following / level - 1, x)
        done += len(own)
        yield done


@torch.no_grad()
def apart(denoiser: ComfyDenoiser, conditions: Sequence[Any], way: Way) -> Iterator[None]:
    """Yield after each of a few forwards that have nothing in common: other texts, levels and noise."""
    generator, sigmas = torch.Generator().manual_seed(_SEED + 1), schedule(denoiser, 2, torch.zeros(1))
    for condition, sigma in zip((conditions[-1], conditions[0]), sigmas[:2], strict=True):
        denoiser.denoised(_noise(denoiser, sigma, way, generator), sigma, [condition])
        yield


def schedule(denoiser: ComfyDenoiser, levels: int, numbers: Tensor) -> Tensor:
    """Return the noise levels (levels + 1, prompts) of prompts with these numbers, falling from the highest to 0;
    between, they are spread evenly over the model's own timesteps, each prompt's moved by another part of a step."""
    moved = numbers * _GOLDEN % 1
    places = 1 - (torch.arange(levels)[:, None] + moved) / levels
    places[0] = 1
    sigmas = denoiser.sigma(places.flatten()).view(places.shape).to(denoiser.device, torch.float32)
    return torch.cat([sigmas, torch.zeros_like(sigmas[:1])])


def _per_picture(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1 for _ in x.shape[1:]))


def _noise(denoiser: ComfyDenoiser, sigma: Tensor, way: Way, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(sigma), *way.shape, generator=generator).to(denoiser.device)
    return denoiser.noised(torch.zeros_like(noise), noise, sigma)


def _batches(conditions: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """Those of one length, at most so many together."""
    by_length: dict[object, list[Any]] = {}
    for condition in conditions:
        by_length.setdefault(_length(condition), []).append(condition)
    for own in by_length.values():
        yield from (own[start : start + most] for start in range(0, len(own), most))


def _length(condition: Any) -> object:
    if isinstance(condition, Caption):
        return windows(condition.tokens)
    return tuple((name, tuple(cond.cond.shape)) for name, cond in condition.items() if torch.is_tensor(cond.cond))


def _rows(denoiser: ComfyDenoiser, way: Way) -> int:
    """As many as keep a device busy, and take no more memory than a step of training."""
    tokens = max(denoiser.tokens(torch.Size(way.shape)), 1)
    return int(min(max(_TOKENS // tokens, 1), _MOST_ROWS))
