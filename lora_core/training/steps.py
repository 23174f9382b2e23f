"""Describes what goes into a step on a device, and what it tells of itself.

Each copy of a tensor between RAM and a device waits for what the device has still to do, so a step makes few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..stored import stored
from .ruin import ProbeBatch


@dataclass(frozen=True)
class Look:
    """One picture in one forward: its index, the quantile u of its noise level, and its loss."""

    index: int
    u: float
    loss: float


@stored("step loss grad_norm learning_rate text_norm preservation looks")
@dataclass(frozen=True)
class StepResult:
    """One optimiser step: its number from 1, its mean loss and the gradient norm before clipping.

    `text_norm` is that of the text encoders' part, `preservation` the loss that preserves, not weighted; both are 0
    without. `looks` are all pictures of the step.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    text_norm: float = 0.0
    preservation: float = 0.0
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True)
class MicroBatch:
    """Pictures that belong together: which they are, the quantiles of their noise levels, and of those that went
    through the model here, from the `first` on, the losses and the loss that preserves, if any, on the device; and what
    these are made of."""

    losses: Tensor
    change: Tensor | None
    indices: list[int]
    levels: list[float]
    shown: ProbeBatch
    first: int = 0


@dataclass(frozen=True)
class StepSummary:
    """Holds what the host has to know of a step before it goes on; `ruined` is why the run cannot, or empty."""

    loss: float
    norm: float
    text_norm: float
    preservation: float
    looks: tuple[Look, ...]
    ruined: str = ""

    @classmethod
    def of(cls, parts: Sequence[MicroBatch], grad: Tensor, text_grad: Tensor) -> StepSummary:
        """Look at the device once, when all of the step is queued. Losses are means over its micro-batches."""
        tensors = [grad.norm()] + [text_grad.norm()] * bool(len(text_grad))
        tensors += [part.losses.mean() for part in parts]
        tensors += [part.change for part in parts if part.change is not None]
        values = iter(looked_at([*tensors, *(part.losses for part in parts)]))
        (norm,), (text_norm,) = next(values), next(values) if len(text_grad) else (0.0,)
        loss = sum(next(values)[0] / len(parts) for _ in parts)
        preservation = sum((next(values)[0] / len(parts) for part in parts if part.change is not None), 0.0)
        looks = [Look(*look) for part in parts for look in zip(part.indices, part.levels, next(values), strict=True)]
        return cls(norm=norm, text_norm=text_norm, loss=loss, preservation=preservation, looks=tuple(looks))


def brought(tensors: Sequence[Tensor | None], device: torch.device) -> list[Any]:
    """The tensors, or None, on the device, where those of one type that lie elsewhere come in one copy."""
    apart = [each for each in tensors if each is not None and each.device != device]
    copies: dict[int, Tensor] = {}
    for kind in {(each.device, each.dtype): None for each in apart}:
        own = [each for each in apart if (each.device, each.dtype) == kind]
        pieces = torch.cat([each.flatten() for each in own]).to(device).split([each.numel() for each in own])
        copies |= {id(each): piece.view(each.shape) for each, piece in zip(own, pieces, strict=True)}
    return [copies.get(id(each), each) for each in tensors]


def looked_at(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Return the values of tensors on one device, each flat, by one copy to RAM."""
    values = torch.cat([each.flatten() for each in tensors]).cpu()
    return [own.tolist() for own in values.split([each.numel() for each in tensors])]
