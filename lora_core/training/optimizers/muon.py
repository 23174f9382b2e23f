"""Muon (Jordan et al. 2024), scaled to the size of AdamW's updates (Liu et al. 2025, arXiv:2502.16982)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..stacks import Stacks
from .matrices import OnMatrices

_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the quintic iteration, which brings singular values near 1
_ITERATIONS = 5
_LEAST = 1e-7  # norm


class Muon(OnMatrices):
    """Each matrix moves by its Nesterov momentum with all singular values made about 1, times 0.2 sqrt(longer side).

    The numbers are those of torch.optim.Muon, matrices of one shape taken together. Weight decay is decoupled. 4 bytes
    of state per parameter.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float, beta1: float):
        super().__init__(groups, {"weight_decay": weight_decay, "beta1": beta1})

    def _moves(self, group: dict[str, Any], values: Tensor, grad: Tensor, stacks: Stacks) -> list[Tensor]:
        beta, params = group["beta1"], group["params"]
        momentum = self.kept("momentum_buffer", params, lambda: torch.zeros_like(grad), stacks.views)
        momentum.lerp_(grad, 1 - beta)
        return [
            _orthogonal(stack).mul_(-group["lr"] * 0.2 * math.sqrt(max(stack.shape[1:])))
            for stack in stacks.of(grad.lerp(momentum, beta))
        ]


def _orthogonal(stack: Tensor) -> Tensor:
    """U V^T of each matrix, about; worked out in bf16 with the short side first."""
    tall, found = stack.shape[1] > stack.shape[2], stack.bfloat16()
    found.div_(torch.linalg.vector_norm(found.flatten(1), dim=1).clamp(min=_LEAST)[:, None, None])
    found = found.mT if tall else found
    for _ in range(_ITERATIONS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), found, beta=_A)
    return (found.mT if tall else found).to(stack.dtype).contiguous()
