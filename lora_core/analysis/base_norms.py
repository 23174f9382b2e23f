"""Tells how large a base model's weights are: what LoRAs are measured beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from einops import rearrange
from torch import Tensor

from ..orthonormal import orthonormal_columns
from .parts import WeightPart

_VECTORS, _STEPS, _TOLERANCE = 4, 24, 1e-3


def norms(weight: Tensor) -> tuple[float, float]:
    """Frobenius and spectral norm of a weight (out, ...), fp32. The spectral one is found by subspace iteration to a
    thousandth, from below."""
    flat = weight.flatten(1)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(flat.shape[1], min(_VECTORS, *flat.shape), generator=generator).to(flat.device)
    before = 0.0
    for _ in range(_STEPS):
        images = flat @ orthonormal_columns(vectors)
        sigma = float(torch.linalg.matrix_norm(images.cpu(), 2))  # of four columns
        if sigma - before <= _TOLERANCE * sigma:
            break
        before, vectors = sigma, flat.T @ images
    return float(torch.linalg.vector_norm(flat)), sigma


def head_norms(
    weights: Mapping[str, Tensor], left: Sequence[WeightPart], right: Sequence[WeightPart], heads: int
) -> list[float]:
    """Return the Frobenius norm in each head of the products of attention: `W_q^T W_k` or `W_o W_v`, of all streams
    together.

    `weights` (out, in) by layer, fp32. Through the Gram matrices of a head: `|X^T Y|^2 = <X X^T, Y Y^T>`.
    """
    width = (left[0].columns if left[0].role == "o" else left[0].rows)[1] // heads
    sides = [reduce(torch.add, (_gram(weights[part.layer], part, width) for part in side)) for side in (left, right)]
    one, other = (side.repeat_interleave(heads // len(side), 0) for side in sides)
    return (one * other).sum((1, 2)).clamp(min=0).sqrt().tolist()


def _gram(weight: Tensor, part: WeightPart, width: int) -> Tensor:
    """(heads, width, width)"""
    piece = weight[part.rows[0] : sum(part.rows), part.columns[0] : sum(part.columns)]
    layout = "inner (heads width)" if part.role == "o" else "(heads width) inner"
    heads = rearrange(piece, f"{layout} -> heads width inner", width=width)
    return heads @ heads.mT
