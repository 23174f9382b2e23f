"""Corrections of slices of one fused weight, as a file holds them, made one correction of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..low_rank import LowRank


def whole(parts: Mapping[tuple[int, int] | None, LowRank], height: int) -> LowRank:
    """Return one correction of a weight of `height` rows, of those of its slices (start, length), or of None: all of
    it."""
    if parts.keys() == {None}:
        return parts[None]
    return row_blocks([(rows[0] if rows else 0, part) for rows, part in parts.items()], height)


def row_blocks(parts: Sequence[tuple[int, LowRank]], height: int) -> LowRank:
    """Return one correction of a weight of `height` rows, of those of slices that start at a row, at their common
    scaling if they have one. Slices of one pair, as formats that split fused weights write them, share A and get their
    rank back."""
    first = parts[0][1]
    if any(part.scaling != first.scaling for _, part in parts):
        parts = [(start, LowRank.concat([part])) for start, part in parts]
        first = parts[0][1]
    apart = sum(len(part.lora_B) for _, part in parts) <= height
    shared = apart and all(_same(part.lora_A, first.lora_A) for _, part in parts[1:])
    lora_A = first.lora_A if shared else torch.cat([part.lora_A for _, part in parts])
    lora_B = torch.zeros(height, len(lora_A), dtype=lora_A.dtype, device=lora_A.device)
    column = 0
    for start, part in parts:
        lora_B[start : start + len(part.lora_B), column : column + part.rank] = part.lora_B
        column += 0 if shared else part.rank
    return LowRank(lora_A, lora_B, first.scaling * len(lora_A), first.kernel)


def _same(a: Tensor, b: Tensor) -> bool:
    """As bytes, which takes half the time of comparing numbers of 16 bits."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
