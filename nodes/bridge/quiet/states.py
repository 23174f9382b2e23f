"""Neutral states of a base: what passes through it while it draws neutral prompts, in few steps and by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ....lora_core.families.distilled import few_step_mark
from ..host.model_files import file_name, files_of
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..model.names import family_of
from ..model.text_encoders import Caption, windows

FORWARDS = 288  # of single pictures, at most: as much as 96 steps of training
_MOST_LEVELS, _CFG = 8, 3.0
_SEED = 20_261_130
_TOKENS, _MOST_ROWS = 4096, 16  # of a forward


@dataclass(frozen=True)
class Way:
    """Says how neutral states are made: noise levels of each prompt, guidance, and the latent (channels, ...)."""

    levels: int
    cfg: float
    shape: tuple[int, ...]


def way_of(model: Model, prompts: int, shape: tuple[int, ...]) -> Way:
    """Spread the forwards over so many prompts; a model that was distilled for guidance, or for few steps, is asked
    without it."""
    family = family_of(model)
    name = file_name(next(iter(files_of(model)), ""))
    distilled = bool(family.guidance or few_step_mark(name, type(model.model.model_config).__name__))
    each = prompts if distilled else 2 * prompts
    levels = min(max(FORWARDS // max(each, 1), 1), _MOST_LEVELS)
    return Way(levels, 1.0 if distilled else _CFG, shape)


@torch.no_grad()
def drawn(denoiser: ComfyDenoiser, conditions: Sequence[Any], empty: Any, way: Way) -> Iterator[int]:
    """Draw every prompt, of its `conditions` as the denoiser takes them, by Euler's method; yield after every forward
    how many prompts are done.

    Prompts with texts of different lengths never share a forward, as what pads them would count as text.
    """
    generator, done = torch.Generator().manual_seed(_SEED), 0
    for own in _batches(conditions, _rows(denoiser, way)):
        for _ in _drawn(denoiser, own, empty, way, generator):
            yield done
        done += len(own)
        yield done


@torch.no_grad()
def apart(denoiser: ComfyDenoiser, conditions: Sequence[Any], way: Way) -> Iterator[None]:
    """Yield after each of a few forwards that have nothing in common: other texts, levels and noise."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    sigmas = _schedule(denoiser, 3)
    for condition, sigma in zip((conditions[-1], conditions[0]), (sigmas[0], sigmas[2]), strict=True):
        x = _noise(denoiser, 1, sigma, way, generator)
        denoiser.denoised(x, sigma.expand(1), [condition])
        yield


def _drawn(
    denoiser: ComfyDenoiser, conditions: list[Any], empty: Any, way: Way, generator: torch.Generator
) -> Iterator[None]:
    sigmas = _schedule(denoiser, way.levels)
    x = _noise(denoiser, len(conditions), sigmas[0], way, generator)
    for level, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        levels = level.expand(len(conditions))
        found = denoiser.denoised(x, levels, conditions)
        yield
        if way.cfg != 1:
            found = torch.lerp(denoiser.denoised(x, levels, [empty] * len(conditions)), found, way.cfg)
            yield
        x = x + (x - found) / level * (following - level)


def _schedule(denoiser: ComfyDenoiser, levels: int) -> Tensor:
    return comfy.samplers.calculate_sigmas(denoiser.sampling, "simple", levels).to(denoiser.device, torch.float32)


def _noise(denoiser: ComfyDenoiser, count: int, sigma: Tensor, way: Way, generator: torch.Generator) -> Tensor:
    noise = torch.randn(count, *way.shape, generator=generator).to(denoiser.device)
    return denoiser.noised(torch.zeros_like(noise), noise, sigma.expand(count))


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
