"""Corrections that drown the weight they correct: not refused, as someone may mean them, but said."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from math import prod

import torch

from ...lora_core.low_rank import LowRank
from ...lora_core.merging.exact_sum import Weighted
from ...lora_core.weak_memo import remembered
from .base import Base

ABSURD = 10.0  # times the norm of the weight
_WORTH_A_LOOK = 0.01  # root mean square of a correction: weights have as much, and LoRAs a tenth of that
_LOOKED_AT = 3  # layers of each LoRA, the loudest


def too_loud(entries: Sequence[Weighted], model, clip) -> list[str]:
    """A sentence for each LoRA that is, in one of its loudest layers, more than ten times as loud as the base model's
    weight. Weights are read only for LoRAs that are loud for a LoRA."""
    said = []
    for entry in entries:
        sizes = {name: _most(layer) * abs(entry.strength_of(name)) for name, layer in entry.adapter.layers.items()}
        loudest = [name for name in nlargest(_LOOKED_AT, sizes, key=sizes.__getitem__) if sizes[name] > _WORTH_A_LOOK]
        weights = Base(model, clip).norms(loudest) if loudest else {}
        found = {
            name: (entry.adapter.layers[name].norm() * abs(entry.strength_of(name)), norm)
            for name, (norm, _) in weights.items() if norm
        }  # fmt: skip
        worst = max(found, key=lambda name: found[name][0] / found[name][1], default=None)
        if worst and found[worst][0] > ABSURD * found[worst][1]:
            own, weight = found[worst]
            said.append(
                f"{entry.name} is {own / weight:.3g} times as loud as the weight {worst} itself (norm {own:.3g} beside "
                f"{weight:.3g}); the file is broken, or meant for a strength around {entry.strength * weight / own:.1g}"
            )
    return said


@remembered
def _most(layer: LowRank) -> float:
    """The most that the root mean square of the correction can be, from the norms of its factors."""
    norms = [float(torch.linalg.vector_norm(factor, dtype=torch.float32)) for factor in (layer.lora_A, layer.lora_B)]
    return abs(layer.scaling) * prod(norms) / (layer.lora_A.shape[1] * layer.lora_B.shape[0]) ** 0.5
