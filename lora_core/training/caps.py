"""Norms of corrections held below a bound, those of layers of one shape together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .branch import Branch

Pairs = tuple[Tensor, Tensor]


@torch.no_grad()
def hold_(flat: Tensor, matrices: Sequence[Tensor], branches: Mapping[Branch, Pairs], most: float) -> None:
    """Shrink both factors of a branch alike until the Frobenius norm of its correction is at most `most`; a smaller one
    keeps every bit. The `matrices`, which fill the flat buffer one after the other, are all factors and others; beside
    each branch stand those two of them that its factors come from.

    The norms are exact, from the factors' Gram matrices, and are not waited for.
    """
    alike: dict[tuple, list[Branch]] = {}
    for branch in branches:
        alike.setdefault((branch.lora_A.shape, branch.lora_B.shape, branch.scaling), []).append(branch)
    held: dict[int, Tensor] = {}
    for (_, _, scaling), own in alike.items():
        lora_A, lora_B = (torch.stack(each) for each in ([b.lora_A for b in own], [b.lora_B for b in own]))
        square = ((lora_B.mT @ lora_B) * (lora_A @ lora_A.mT)).sum((1, 2)).clamp(min=0) * scaling**2
        shrink = (most / square.sqrt().clamp(min=most)).sqrt()[:, None, None]
        for factors in zip(*(branches[branch] for branch in own), strict=True):
            held |= zip(map(id, factors), torch.stack(factors).mul_(shrink), strict=True)
    flat.copy_(torch.cat([held.get(id(matrix), matrix).reshape(-1) for matrix in matrices]))
