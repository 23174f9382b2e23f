"""Chooses the steps and the captions on which the base model's own answer is kept.

A run of version 0.1.0 keeps it on every step, on its pictures' captions with the concept replaced, drawn with all else.
With neutral captions, or on every k-th step, what is drawn depends on the seed and the step alone: the pictures, noises
and noise levels of the run are those that it has without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from .config import TrainConfig
from .sample import Sample


def preserved(
    config: TrainConfig, step: int, part: int, batch: Sequence[Sample], generator: torch.Generator
) -> list[Any]:
    """Return one condition for each sample of micro-batch `part` of `step`, which counts from 1; none where the step
    does not preserve. Where a sample has conditions of both kinds, either is as likely."""
    if not config.preservation or step % config.preserve_every:
        return []
    if config.preserve_every > 1 or any(sample.neutral for sample in batch):
        generator = torch.Generator().manual_seed(_number(f"{config.seed} {step} {part}"))
    return [_one(sample, generator) for sample in batch]


def _one(sample: Sample, generator: torch.Generator) -> Any:
    kinds = [kind for kind in (sample.preserved, sample.neutral) if kind]
    pool = kinds[0] if len(kinds) == 1 else kinds[int(torch.randint(2, (), generator=generator))]
    return pool[int(torch.randint(len(pool), (), generator=generator))]


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
