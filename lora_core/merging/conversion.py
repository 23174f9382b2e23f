"""Every kind of correction as a plain LoRA: exactly where its formula has a rank, otherwise the nearest of a rank.

LoHa is the row-wise Khatri-Rao product of its sides, so of rank r^2 at most. The singular values of a Kronecker product
are the products of its factors', so LoKr is cut optimally without ever being multiplied out. GLoRA is of rank 2 r given
the weight. What is left (DoRA, OFT, whole differences) is dense and cut by a randomised range finder (Halko,
Martinsson and Tropp 2011, arXiv:0909.4061).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import torch
from torch import Tensor

from ..adapter import Adapter
from ..kinds import Correction, GLoRA, LoHa, LoKr, Placed
from ..kinds.lokr import product
from ..low_rank import Decomposition, LowRank
from .truncation import Limits

_EXACT = 1024  # above that rank a spectrum costs more than a sketch of the dense matrix
_OVERSAMPLE, _POWERS = 16, 3


def to_low_rank(
    change: LowRank | Correction, limits: Limits, weight: Tensor | None = None, seed: int = 0
) -> tuple[LowRank, float]:
    """What `change` adds at strength 1 as a LowRank in fp32, and the relative Frobenius error.

    `limits.rank` bounds the rank (0: exact where there are factors, 128 otherwise), `limits.energy` keeps less where
    less is enough. `weight` is the one that is changed: its shape places the kernel, and kinds that depend on it need
    its values. Raises ValueError when it is missing.
    """
    if isinstance(change, LowRank):
        return _cut(change, limits)
    if weight is None:
        raise ValueError(f"{change.kind} becomes a LoRA only together with the weight that it changes; give it")
    kernel = tuple(weight.shape[2:])
    if isinstance(change, LoKr) and min(_inner(change).shape) <= _EXACT:
        made, error = _kronecker(change, limits)
        return replace(made, kernel=kernel), error
    if (factors := _factors(change, weight)) is not None and factors.rank <= min(_EXACT, *_flat(weight)):
        return _cut(replace(factors, kernel=kernel), limits)
    delta = change.apply_to(weight.float()) - weight.float()
    made, error = sketched(delta.flatten(1), limits, seed)
    return replace(made, kernel=kernel), error


def sketched(delta: Tensor, limits: Limits, seed: int = 0) -> tuple[LowRank, float]:
    """The nearest LowRank of a matrix, nearly optimal (Halko et al., algorithm 4.4), and its exact relative error."""
    total = float(delta.norm())
    most = min(limits.rank or 128, *delta.shape)
    if total == 0.0:
        return _nothing(delta), 0.0
    generator = torch.Generator().manual_seed(seed)
    width = min(most + _OVERSAMPLE, *delta.shape)
    basis = torch.randn(delta.shape[1], width, generator=generator).to(delta)
    for _ in range(_POWERS):
        basis = torch.linalg.qr(delta.T @ torch.linalg.qr(delta @ basis)[0])[0]
    left = torch.linalg.qr(delta @ basis)[0]
    parts = Decomposition((left.T @ delta).double(), left.double())
    made = parts.keep(min(most, _rank_for(parts.sigma, limits.energy, total)))
    return made, float((delta - made.delta_weight()).norm()) / total


def _cut(exact: LowRank, limits: Limits) -> tuple[LowRank, float]:
    parts = exact.to(torch.float32).decompose()
    if not float(parts.sigma[0]):
        return exact, 0.0
    rank = min(limits.rank or exact.rank, parts.rank_for(limits.energy if limits.energy < 1 else None))
    return (exact, 0.0) if rank >= exact.rank else (parts.keep(rank), parts.error(rank))


def _factors(change: Correction, weight: Tensor) -> LowRank | None:
    """The exact factors of what `change` adds, in fp32, or None where there are none."""
    if isinstance(change, LoHa):
        return _khatri_rao(change)
    return _beside_the_weight(change, weight.float()) if isinstance(change, GLoRA) else None


def _khatri_rao(loha: LoHa) -> LowRank:
    """`(P1 Q1) * (P2 Q2) = B A` with `B[o, ij] = P1[o, i] P2[o, j]`, `A[ij, c] = Q1[i, c] Q2[j, c]`."""
    (p1, q1), (p2, q2) = loha.sides()
    up = (p1[:, :, None] * p2[:, None, :]).flatten(1)
    down = (q1[:, None, :] * q2[None, :, :]).flatten(0, 1)
    return LowRank(down, up * loha.scale, float(len(down)))


def _beside_the_weight(glora: GLoRA, weight: Tensor) -> LowRank:
    a1, a2, b1, b2 = (factor.to(weight) for factor in glora.tensors())
    if len(a1) == weight[0].numel():
        up, down = weight.flatten(1) @ a1, a2
    else:
        taps = weight[0, 0].numel()
        up = torch.einsum("oi...,ir->or...", weight, a1).flatten(1)
        down = torch.kron(a2, torch.eye(taps).to(a2))
    lora_A = torch.cat([down, b2])
    return LowRank(lora_A, torch.cat([up, b1], dim=1) * glora.scale, float(len(lora_A)))


def _inner(lokr: LoKr) -> Tensor:
    """The larger factor as a matrix."""
    return product(*(factor.float() for factor in lokr.w2)).flatten(1)


def _kronecker(lokr: LoKr, limits: Limits) -> tuple[LowRank, float]:
    """`kron(U S V, X T Y) = kron(U, X) kron(S, T) kron(V, Y)`: the largest products of singular values are kept."""
    u1, s1, v1 = _svd(product(*(factor.float() for factor in lokr.w1)) * lokr.scale)
    u2, s2, v2 = _svd(_inner(lokr))
    sigma, order = torch.outer(s1, s2).flatten().sort(descending=True)
    if not float(sigma[0]):
        return _nothing(torch.zeros(len(u1) * len(u2), v1.shape[1] * v2.shape[1])), 0.0
    informed = int((sigma > sigma[0] * 1e-7).sum())
    rank = min(limits.rank or informed, informed, _rank_for(sigma, limits.energy, float(sigma.norm())))
    first, second = order[:rank] // len(s2), order[:rank] % len(s2)
    root = sigma[:rank].sqrt()
    up = torch.einsum("ak,ck->ack", u1[:, first], u2[:, second]).flatten(0, 1) * root
    down = torch.einsum("kb,kd->kbd", v1[first], v2[second]).flatten(1) * root[:, None]
    return LowRank(down.float(), up.float(), float(rank)), float(sigma[rank:].norm() / sigma.norm())


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix.double(), full_matrices=False)


def _rank_for(sigma: Tensor, energy: float, total: float) -> int:
    """The fewest values with that share of the whole's squared norm; all when they do not reach it."""
    if energy >= 1:
        return len(sigma)
    return min(int((sigma.double().square().cumsum(0) < energy * total**2).sum()) + 1, len(sigma))


def _nothing(like: Tensor) -> LowRank:
    return LowRank(like.new_zeros(1, like.shape[1]), like.new_zeros(like.shape[0], 1), 1.0)


def _flat(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


@dataclass
class Converted:
    """`errors` of the layers that changed their kind; `left_out` are biases and norms, which have no rank."""

    adapter: Adapter
    errors: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def convert(
    adapter: Adapter, limits: Limits, weight_of: Callable[[str], Tensor], tick: Callable[[int, int], None]
) -> Converted:
    """The adapter with every correction of a matrix as a LowRank, plain ones as they are.

    `weight_of` gives the weight of a layer, in any dtype; `tick` is told how many of how many are done. Raises
    ValueError for a file that makes weights larger.
    """
    if wider := [name for name, items in adapter.others.items() if any(item.new_shape for item in items)]:
        raise ValueError(f"{wider[0]} is made larger, which no plain LoRA does; apply the file with Load LoRA Stack")
    made = Converted(replace(adapter, layers=dict(adapter.layers), others={}))
    for index, (name, items) in enumerate(adapter.others.items()):
        weight = weight_of(name).float()
        if weight.ndim < 2:
            made.left_out[name] = items[0].kind
        else:
            layer, made.errors[name] = _layer(adapter.layers.get(name), items, weight, limits)
            made.adapter.layers[name] = layer
        tick(index + 1, len(adapter.others))
    return made


def _layer(plain: LowRank | None, items: Sequence[Correction], weight: Tensor, limits: Limits) -> tuple[LowRank, float]:
    if plain is None and len(items) == 1 and not isinstance(items[0], Placed):
        return to_low_rank(items[0], limits, weight)
    if plain is None and not limits.rank and all(isinstance(item, Placed) for item in items):
        return _slices(items, limits, weight)
    changed = weight.clone() if plain is None else plain.add_to_(weight.clone())
    for item in items:
        changed = item.apply_to(changed)
    layer, error = sketched((changed - weight).flatten(1), limits)
    return replace(layer, kernel=tuple(weight.shape[2:])), error


def _slices(items: Sequence[Placed], limits: Limits, weight: Tensor) -> tuple[LowRank, float]:
    """Of rows that do not overlap, each for itself."""
    made, kept, lost = [], 0.0, 0.0
    for item in items:
        part, error = to_low_rank(item.inner, limits, item.rows_of(weight))
        made.append(item.put_back(part, len(weight)))
        kept += part.inner(part)
        lost += part.inner(part) * error**2 / (1 - error**2)
    return LowRank.concat(made), sqrt(lost / (kept + lost)) if kept else 0.0
