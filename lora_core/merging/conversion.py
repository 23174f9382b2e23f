"""Every kind of correction as a plain LoRA: exactly where its formula has a rank, otherwise the nearest of a rank.

LoHa is the row-wise Khatri-Rao product of its sides, so of rank r^2 at most. The singular values of a Kronecker product
are the products of its factors', so LoKr is cut optimally without ever being multiplied out. GLoRA is of rank 2 r given
the weight. What is left (DoRA, OFT, whole differences) is dense and cut as an extraction is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from ..adapter import Adapter
from ..kinds import Correction, Difference, GLoRA, LoHa, LoKr, Placed
from ..kinds.lokr import product
from ..low_rank import LowRank
from ..ranks.dealt import Tick, Wire, dealt
from ..ranks.group import ALONE, Group
from ..stack.chain import Step, applied
from .extraction import cut, extract, rank_for
from .truncation import Limits
from .wire import packed_layer, unpacked_layer

_EXACT = 1024  # above that rank a spectrum costs more than a sketch of the dense matrix
_RANK = 128  # of what has none of its own, when nothing is said


def to_low_rank(
    change: LowRank | Correction, limits: Limits, weight: Tensor | None = None, name: str = "", strength: float = 1.0
) -> tuple[LowRank, float]:
    """Return what `change` adds as a LowRank in fp32, and the relative Frobenius error. Times `strength` it is what
    `change` adds at that strength, which for some kinds (OFT) is more or less than as many times what it adds at 1.

    `limits.rank` bounds the rank (0: exact where there are factors, 128 otherwise), `limits.energy` keeps less where
    less is enough. `weight` is the one that is changed: its shape places the kernel, and kinds that depend on it need
    its values. `name` is that of the layer. What is made is on the CPU. Raises ValueError when the weight is missing,
    or a dense change is NaN or infinite.
    """
    if isinstance(change, LowRank):
        return _cut(change, limits, name)
    if weight is None:
        raise ValueError(f"{change.kind} can be converted to a LoRA only with the base model; connect it")
    kernel = tuple(weight.shape[2:])
    if isinstance(change, LoKr) and min(_inner(change).shape) <= _EXACT:
        made, error = _kronecker(change, limits)
        return replace(made, kernel=kernel), error
    if (factors := _factors(change, weight)) is not None and factors.rank <= min(_EXACT, *_flat(weight)):
        return _cut(replace(factors.to("cpu"), kernel=kernel), limits, name)
    return _nearest(change.apply_to(weight.float(), strength) - weight.float(), limits, name, strength)


def _nearest(delta: Tensor, limits: Limits, name: str, strength: float = 1.0) -> tuple[LowRank, float]:
    """Return the LowRank nearest to a dense change at that strength, which is overwritten, and the relative error."""
    found = extract(delta, limits.rank or _RANK, limits.energy, name)
    return (found.low_rank.scaled(1 / strength), found.error) if found else (_nothing(delta), 0.0)


def _cut(exact: LowRank, limits: Limits, name: str) -> tuple[LowRank, float]:
    found = cut(exact.to(torch.float32), limits.rank or exact.rank, limits.energy, name)
    return (exact, 0.0) if found is None or found.low_rank.rank == exact.rank else (found.low_rank, found.error)


def _factors(change: Correction, weight: Tensor) -> LowRank | None:
    """The exact factors of what `change` adds, in fp32, or None where there are none."""
    if isinstance(change, LoHa):
        return khatri_rao(change)
    return _beside_the_weight(change, weight.float()) if isinstance(change, GLoRA) else None


def khatri_rao(loha: LoHa, dtype: torch.dtype = torch.float32) -> LowRank:
    """Return it as a LowRank: `(P1 Q1) * (P2 Q2) = B A` with `B[o, ij] = P1[o, i] P2[o, j]` and `A[ij, c] = Q1[i, c]
    Q2[j, c]`."""
    (p1, q1), (p2, q2) = loha.sides(dtype)
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
    rank = min(limits.rank or informed, informed, rank_for(sigma, limits.energy, float(sigma.norm())))
    first, second = order[:rank] // len(s2), order[:rank] % len(s2)
    root = sigma[:rank].sqrt()
    up = torch.einsum("ak,ck->ack", u1[:, first], u2[:, second]).flatten(0, 1) * root
    down = torch.einsum("kb,kd->kbd", v1[first], v2[second]).flatten(1) * root[:, None]
    return LowRank(down.float(), up.float(), float(rank)), float(sigma[rank:].norm() / sigma.norm())


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix.cpu().double(), full_matrices=False)


def _nothing(like: Tensor) -> LowRank:
    """Return the LowRank that does not change a weight of that shape: zeros of rank 1."""
    return LowRank(torch.zeros(1, like[0].numel()), torch.zeros(len(like), 1), 1.0, tuple(like.shape[2:]))


def _flat(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


@dataclass
class Converted:
    """`errors` of the layers that changed their kind. Biases and norms have no rank: `vectors` are what is added to
    them, at strength 1, and `left_out` names those for which that depends on what is found. `sizes` are the squared
    norms of the layers whose kind is no plain LoRA."""

    adapter: Adapter
    errors: dict[str, float] = field(default_factory=dict)
    vectors: dict[str, Difference] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Return the relative error of all converted layers together."""
        if self.sizes:
            lost = sum(self.sizes[name] * error**2 for name, error in self.errors.items())
            return sqrt(lost / (sum(self.sizes[name] for name in self.errors) or 1.0))
        return _together((self.adapter.layers[name], error) for name, error in self.errors.items())


@dataclass(frozen=True)
class _One:
    """Holds a layer converted: a LowRank and its error, what is added to a bias or norm, or a kind that has neither."""

    layer: LowRank | None = None
    error: float = 0.0
    vector: Tensor | None = None
    left_out: str = ""

    def packed(self) -> dict[str, Any]:
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**held, "layer": self.layer and packed_layer(self.layer)}

    @classmethod
    def unpacked(cls, held: Mapping[str, Any]) -> _One:
        return cls(**{**held, "layer": held["layer"] and unpacked_layer(held["layer"])})


_WIRE = Wire(_One.packed, lambda name, held: _One.unpacked(held))


def convert(
    adapter: Adapter, limits: Limits, weight_of: Callable[[str], Tensor], tick: Tick,
    strength_of: Callable[[str], float] = lambda name: 1.0, group: Group = ALONE,
) -> Converted:  # fmt: skip
    """Return the adapter with every correction of a matrix as a LowRank, plain ones as they are.

    `weight_of` gives the weight of a layer, in any dtype; `tick` is told how many of how many are done. The result is
    to be applied at `strength_of` a layer; where that is 0 it is left out. The ranks of `group` share the layers out,
    and all have the whole, what others made on the CPU. Raises ValueError for a file that makes weights larger.
    """
    _refuse_wider(adapter.others)

    def work(name: str) -> _One:
        items, strength = adapter.others[name], strength_of(name)
        weight = weight_of(name).float()
        if weight.ndim > 1:
            return _One(*_layer(adapter.layers.get(name), items, weight, limits, name, strength))
        if any(item.depends_on_weight for item in items):
            return _One(left_out=items[0].kind)
        return _One(vector=applied(torch.zeros_like(weight), map(Step, items)))

    costs = {name: _cost([Step(items[0])]) for name, items in adapter.others.items() if strength_of(name)}
    return _collected(adapter, dealt(group, costs, work, _WIRE, tick))


def convert_steps(
    steps: Mapping[str, Sequence[Step]], limits: Limits, weight_of: Callable[[str], Tensor], tick: Tick,
    group: Group = ALONE,
) -> Converted:  # fmt: skip
    """Convert what all steps of a layer do one after the other to one LowRank for each layer, at strength 1. `group` is
    that of `convert`. Raises ValueError for a step that makes a weight larger."""
    _refuse_wider({name: [s.change for s in each if isinstance(s.change, Correction)] for name, each in steps.items()})

    def work(name: str) -> _One:
        weight = weight_of(name).float()
        delta = applied(weight, steps[name]) - weight
        return _One(vector=delta) if weight.ndim < 2 else _One(*_nearest(delta, limits, name))

    return _collected(Adapter({}), dealt(group, {name: _cost(each) for name, each in steps.items()}, work, _WIRE, tick))


def _collected(adapter: Adapter, found: Mapping[str, _One]) -> Converted:
    layers = {name: one.layer for name, one in found.items() if one.layer}
    return Converted(
        replace(adapter, layers={**adapter.layers, **layers}, others={}),
        {name: found[name].error for name in layers},
        {name: Difference(one.vector) for name, one in found.items() if one.vector is not None},
        {name: one.left_out for name, one in found.items() if one.left_out},
    )


def _cost(steps: Sequence[Step]) -> float:
    """About how long a layer takes, beside others, by what it is made of."""
    change = steps[0].change
    shape = (change[0] if isinstance(change, tuple) else change).shape
    return float(prod(shape)) * min(shape[0], prod(shape[1:]))


def _refuse_wider(changes: Mapping[str, Sequence[Correction]]) -> None:
    if wider := [name for name, items in changes.items() if any(item.new_shape for item in items)]:
        raise ValueError(
            f"{wider[0]} is made larger by this file, which a plain LoRA cannot do; apply the file with Load LoRA Stack"
        )


def _layer(
    plain: LowRank | None, items: Sequence[Correction], weight: Tensor, limits: Limits, name: str, strength: float
) -> tuple[LowRank, float]:
    if plain is None and len(items) == 1 and not isinstance(items[0], Placed):
        return to_low_rank(items[0], limits, weight, name, strength)
    slices = [item for item in items if isinstance(item, Placed)]
    if plain is None and not limits.rank and len(slices) == len(items):
        return _slices(slices, limits, weight, name, strength)
    steps = [Step((plain,), strength)] if plain else []
    changed = applied(weight, [*steps, *(Step(item, strength) for item in items)])
    return _nearest(changed - weight, limits, name, strength)


def _slices(
    items: Sequence[Placed], limits: Limits, weight: Tensor, name: str, strength: float
) -> tuple[LowRank, float]:  # fmt: skip
    """Convert rows that do not overlap, each for itself. Return them as one LowRank, and the error of all together."""
    made = [to_low_rank(item.inner, limits, item.rows_of(weight), name, strength) for item in items]
    whole = (item.put_back(part, len(weight)) for item, (part, _) in zip(items, made, strict=True))
    return LowRank.concat(whole), _together(made)


def _together(parts: Iterable[tuple[LowRank, float]]) -> float:
    """The relative error of several orthogonal parts together, from what is kept of each and its own relative error."""
    kept = lost = 0.0
    for part, error in parts:
        energy = part.inner(part)
        kept += energy
        lost += energy * error**2 / (1 - error**2)
    return sqrt(lost / (kept + lost)) if kept else 0.0
