"""Makes the optimiser of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..config import OptimizerConfig


def optimizer_of(config: OptimizerConfig, parts: Sequence[tuple[Tensor, Sequence[Tensor], float]]) -> Optimizer:
    """Return one parameter group per part: a flat fp32 buffer, the matrices that are views of it, and its peak learning
    rate.

    Each group keeps its peak as `peak`.
    """
    method = config.method
    groups: list[dict[str, Any]] = [{"params": [flat], "lr": peak, "peak": peak} for flat, _, peak in parts]
    if method.on_matrices:
        for group, (flat, matrices, _) in zip(groups, parts, strict=True):
            group |= {"flat": flat, "params": list(matrices)}
    return method.build(groups, weight_decay=config.weight_decay, **config.numbers)
