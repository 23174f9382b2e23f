"""The cross terms of attention: what one LoRA's queries make of another's keys, and outputs of values, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .figures import Head, OverlapExcess
from .layer_sum import LayerTerms
from .parts import WeightPart

KINDS = {"Q-K": "qk", "O-V": "ov"}  # products in attention, and the roles of their two sides


@dataclass(frozen=True)
class Attention:
    """Holds the number of heads of each attention (`parts.attentions`), and for each (attention, kind) the norm of the
    base model's own product in each head, where it is known."""

    heads: Mapping[str, int] = field(default_factory=dict)
    base: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)


class Side(NamedTuple):
    """Holds what one LoRA has in each head of one side of a product of attention: `inner` (heads, rank, width) is what
    the sides are multiplied over, `outer` (rank, rank) the Gram matrix of the other factor. `norms` (heads,) are
    squared, `bound` (heads,) is at least the largest squared singular value."""

    inner: Tensor
    norms: Tensor
    bound: Tensor
    outer: Tensor

    def times(self, other: Side) -> Tensor:
        """Held, expected, variance and peak of the product's squared norm, (4, heads)."""
        C, width = self.inner @ other.inner.mT, self.inner.shape[2]
        held = ((self.outer @ C) * (C @ other.outer)).sum((1, 2))
        peak = self.bound * other.bound / width
        return torch.stack([held, self.norms * other.norms / width, 2 * peak.square(), peak])


def sides(layer: LayerTerms, part: WeightPart, width: int, heads: int) -> dict[int, Side]:
    """By the index of the LoRA, in so many heads: keys and values that several queries share are repeated."""
    if part.role == "o":
        inner, outer = layer.columns(*part.columns), layer.gram_of_rows(part.rows).all
    else:
        inner, outer = layer.rows(*part.rows).T, layer.gram_of_columns(part.columns).all
    outer, inner = outer.to(inner.device), rearrange(inner, "rank (heads width) -> heads rank width", width=width)
    return {index: _side(inner[:, span], outer[span, span], heads) for index, span in layer.members.items()}


def _side(inner: Tensor, outer: Tensor, heads: int) -> Side:
    product = inner @ inner.mT @ outer
    norms, bound = product.diagonal(dim1=1, dim2=2).sum(-1), (product * product.mT).sum((1, 2)).clamp(min=0).sqrt()
    inner, norms, bound = (each.repeat_interleave(heads // len(inner), 0) for each in (inner, norms, bound))
    return Side(inner, norms, bound, outer)


def in_each_head(
    count: int, home: str, kind: str, ends: Sequence[Sequence[Mapping[int, Side]]], attention: Attention
) -> tuple[list[Head], OverlapExcess]:
    """Return each pair's cross term in each head, and all of them together. `ends` are the two sides of the product,
    each of one or more streams; streams that attend to each other add up."""
    heads, base = attention.heads[home], attention.base.get((home, kind), ())
    found, sums = [], np.zeros((5, count, count))
    for i in range(count):
        for j in range(i + 1, count):
            terms = [
                left[a].times(right[b])
                for a, b in ((i, j), (j, i)) for left in ends[0] for right in ends[1] if a in left and b in right
            ]  # fmt: skip
            if not terms:
                continue
            held, expected, variance, peak = torch.stack(terms).sum(0).cpu().numpy()
            for head in range(heads):
                times = held[head] / expected[head] if expected[head] else 1.0
                norm = max(float(held[head]), 0.0) ** 0.5
                own = base[head] if base else 0.0
                found.append(Head(home, head, kind, pair=(i, j), norm=norm, times=float(times), base=own))
            every = held.sum(), expected.sum(), variance.sum(), peak.max(), sum(norm**2 for norm in base)
            sums[:, i, j] = sums[:, j, i] = every
    return found, OverlapExcess(*sums)
