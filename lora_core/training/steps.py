"""What a step tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """One picture in one forward: its index, the quantile u of its noise level, and its loss."""

    index: int
    u: float
    loss: float


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
