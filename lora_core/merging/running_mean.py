"""The mean of what a run has saved, after the fact: exact, and cut back to the rank of the run.

An exponential moving average over saved steps is what musubi-tuner's `lora_post_hoc_ema.py` makes; there of each factor
by itself, here of the corrections, as the mean of products is not the product of means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch

from ..low_rank import LowRank
from ..stack.weighted import Weighted, check_finite, terms_of

LEAST = 2  # steps


@dataclass
class Mean:
    """`errors` are the relative Frobenius errors of the cut by layer, `error` that of the whole. `moved` is how far the
    mean is from the last part, relative to its norm, and `size` its norm as a share of that."""

    layers: dict[str, LowRank] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    error: float = 0.0
    moved: float = 0.0
    size: float = 0.0


def taken(steps: Iterable[int], first: int) -> list[int]:
    """Return the steps from `first` on, in order; of 0 those of the last half of the way to the last."""
    ordered = sorted(steps)
    return [step for step in ordered if step >= (first or ordered[-1] / 2)]


def shares(count: int, decay: float) -> list[float]:
    """Return the weight of each of so many steps, the first one first; they add up to 1.

    With a `decay` d in (0, 1) the average starts as the first step and becomes d * average + (1 - d) * step with each
    that follows; 0 is the plain mean.
    """
    if not decay:
        return [1 / count] * count
    later = [(1 - decay) * decay ** (count - 1 - at) for at in range(1, count)]
    return [decay ** (count - 1), *later]


def mean(parts: Sequence[Weighted], tick: Callable[[int, int], None] = lambda done, total: None) -> Mean:
    """Return the weighted sum of the parts, each layer at the highest rank that it has in one of them, at the least
    error (Eckart-Young, in fp64), the factors in fp32. `tick` hears how many layers are done, of how many, and may
    raise to cancel.

    Raises ValueError when a part holds other than plain LoRA or numbers that are not finite, or corrected weights
    differ in shape.
    """
    terms, last = terms_of(parts), parts[-1].adapter.layers
    check_finite(parts)
    made, lost, whole, way, before, after = Mean(), 0.0, 0.0, 0.0, 0.0, 0.0
    for done, (name, held) in enumerate(terms.items()):
        tick(done, len(terms))
        found = LowRank.concat(each.to(torch.float64) for each in held).decompose()
        rank = max(each.rank for each in held)
        kept = made.layers[name] = found.keep(rank).to(torch.float32)
        made.errors[name] = found.error(rank)
        whole += float(found.sigma.square().sum())
        lost += float(found.sigma[rank:].square().sum())
        after += kept.inner(kept)
        way += (kept.distance(last[name]) if name in last else kept.norm()) ** 2
        before += last[name].inner(last[name]) if name in last else 0.0
    made.error = sqrt(lost / whole) if whole else 0.0
    made.moved, made.size = (sqrt(max(each, 0.0) / before) if before else 0.0 for each in (way, after))
    return made
