"""The LoKr and the LoHa nearest to a low-rank correction, found from its factors alone: no weight is multiplied out.

A Kronecker product is of rank 1 when its blocks are made rows (Van Loan, Pitsianis 1993), so the nearest one is exact,
and so is its error; where its larger matrix is to be small, too, that is cut afterwards. With a single number for the
smaller one a LoKr is a LoRA, so none is farther than a LoRA of its size. A LoHa that has the LoRA's
rank holds it exactly, with the other side all ones; one of less is found by alternating least squares over its four
factors, each step of which is exact: the nearest that is near by, not the nearest of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from ..kinds import LoHa, LoKr
from ..low_rank import LowRank
from .conversion import khatri_rao

_SIDES = (1, 2, 4, 8, 16)  # of the small matrix of a LoKr, at the most
_SWEEPS, _SLOW = 40, 1e-4  # of least squares; less gain than that of the error ends them
_RIDGE = 1e-9
_STIR = 0.3  # size of what is beside the ones at the start


@dataclass(frozen=True)
class Nearest:
    """`error` is the relative Frobenius error."""

    change: LoKr | LoHa
    error: float


def nearest_lokr(layer: LowRank, rank: int = 0) -> Nearest:
    """Return the nearest LoKr whose larger matrix has no more numbers than a LoRA of `rank` (0, or that of the layer
    and above: exact), in fp32."""
    splits = _splits(layer.shape) if 0 < rank < layer.rank else [(1, 1)]
    budget = min(rank or layer.rank, layer.rank) * (layer.shape[0] + prod(layer.shape[1:]))
    found = (_kronecker(layer, sides, budget) for sides in splits)
    return min(found, key=lambda each: each.error)


def nearest_loha(layer: LowRank, rank: int = 0) -> Nearest:
    """Return a LoHa of `rank` (0, or that of the layer and above: exact), in fp32."""
    if not 0 < rank < layer.rank:
        return _beside_ones(layer, layer.rank)
    exact = layer.to("cpu", torch.float64)
    size = exact.norm()
    if not size:
        return _beside_ones(layer.truncate(rank=rank), rank)
    best = _start(exact, rank)
    error = _distance(exact, best) / size
    for _ in range(_SWEEPS):
        better = _swept(exact, best)
        now = _distance(exact, better) / size
        if not now < error:
            break
        best, gain, error = better, error - now, now
        if gain < _SLOW * error:
            break
    return Nearest(best.to(torch.float32), error)


def _splits(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(a, b) of matrices that the small one may be; the plainest comes first."""
    return sorted({(_divisor(shape[0], rows), _divisor(shape[1], columns)) for rows in _SIDES for columns in _SIDES})


def _divisor(number: int, most: int) -> int:
    return next(each for each in range(min(most, number), 0, -1) if number % each == 0)


def _kronecker(layer: LowRank, sides: tuple[int, int], budget: int) -> Nearest:
    a, b = sides
    down, up = layer.lora_A.double().cpu(), layer.lora_B.double().cpu() * layer.scaling
    rows, columns = up.reshape(a, -1, layer.rank), down.reshape(layer.rank, b, -1)
    outer = torch.einsum("acr,ecs->aers", rows, rows)
    inner = torch.einsum("rbd,sfd->bfrs", columns, columns)
    gram = torch.einsum("aers,bfrs->abef", outer, inner).reshape(a * b, a * b)
    first = torch.linalg.eigh(gram).eigenvectors[:, -1].reshape(a, b)
    left, right = torch.einsum("ab,acr->cbr", first, rows).flatten(1), columns.transpose(0, 1).flatten(0, 1)
    second = LowRank(right, left, float(len(right)))
    if prod(second.shape) <= budget:
        factors = (second.delta_weight().reshape(-1, layer.shape[1] // b, *layer.kernel),)
    else:
        second = second.truncate(rank=max(1, budget // sum(second.shape)))
        factors = second.lora_B * second.scaling, second.lora_A
    total, kept = float(gram.trace()), second.inner(second)
    error = sqrt(max(total - kept, 0.0) / total) if total else 0.0
    return Nearest(LoKr((first.float(),), tuple(factor.float().contiguous() for factor in factors)), error)


def _beside_ones(layer: LowRank, rank: int) -> Nearest:
    flat = layer.to("cpu", torch.float32)
    (rows, columns), ones = (len(flat.lora_B), flat.lora_A.shape[1]), torch.zeros(2)
    w2_a, w2_b = ones.new_zeros(rows, rank), ones.new_zeros(rank, columns)
    w2_a[:, 0], w2_b[0] = 1.0, 1.0
    return Nearest(LoHa(flat.lora_B * flat.scaling, flat.lora_A, w2_a, w2_b), 0.0)


def _start(layer: LowRank, rank: int) -> LoHa:
    """The best of that rank beside ones, a little disturbed, so that the other side can move."""
    cut = layer.truncate(rank=rank)
    generator = torch.Generator().manual_seed(0)
    sizes = (len(cut.lora_B), rank), (rank, cut.lora_A.shape[1])
    w2_a, w2_b = (_STIR * torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    w2_a[:, 0], w2_b[0] = 1.0, 1.0
    return LoHa(cut.lora_B * cut.scaling, cut.lora_A, w2_a, w2_b)


def _swept(layer: LowRank, loha: LoHa) -> LoHa:
    """Every factor solved for, given the three others."""
    up, down = layer.lora_B * layer.scaling, layer.lora_A
    p1, q1, p2, q2 = loha.w1_a, loha.w1_b, loha.w2_a, loha.w2_b
    p1 = _solved(up, down, q1, p2, q2)
    q1 = _solved(down.T, up.T, p1.T, q2.T, p2.T).T
    p2 = _solved(up, down, q2, p1, q1)
    q2 = _solved(down.T, up.T, p2.T, q1.T, p1.T).T
    return LoHa(p1, q1, p2, q2)


def _solved(up: Tensor, down: Tensor, own: Tensor, other_up: Tensor, other_down: Tensor) -> Tensor:
    """The X that makes `(X own) * (other_up other_down)` nearest to `up down`, row by row of it: normal equations,
    whose sums over columns are the same for every row."""
    pairs = torch.einsum("ic,kc->ikc", own, other_down).flatten(0, 1)
    size, others = len(own), len(other_down)
    products = (pairs @ pairs.T).reshape(size, others, size, others)
    normal = torch.einsum("ok,ol,ikjl->oij", other_up, other_up, products)
    wanted = torch.einsum("or,ok,rik->oi", up, other_up, (down @ pairs.T).reshape(-1, size, others))
    ridge = _RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(normal.dtype).tiny)
    normal = normal + ridge[:, None, None] * torch.eye(size, dtype=normal.dtype)
    return torch.linalg.solve(normal, wanted)


def _distance(layer: LowRank, loha: LoHa) -> float:
    return layer.distance(khatri_rao(loha, torch.float64))
