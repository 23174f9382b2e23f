"""Trains a slider at both of its ends in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .inject import Factors

End = tuple[float, Callable[[], Tensor]]  # a strength, and the loss of each sample at it


def both(factors: Factors, ends: Sequence[End], weight: float = 0.0) -> Tensor:
    """Return the loss of each sample, (batch,), the mean of both ends. With a `weight` its gradient, so many times, is
    added to the factors: one backward pass for each end, inside its strength, at which layers may be computed again."""
    found = []
    for strength, losses in ends:
        with factors.at(strength):
            own = losses()
            if weight:
                (own.mean() * weight / len(ends)).backward()
        found.append(own.detach() if weight else own)
    return torch.stack(found).mean(0)
