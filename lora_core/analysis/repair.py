"""Repairs a LoRA by exact arithmetic on its layers, each step of which is told so that anybody can do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from ..low_rank import LowRank
from ..stored import stored
from .health import Fence, Health, LayerFigures

Why = Literal["broken", "dead", "outlier", "loud", "too loud as a whole", "block"]


@stored("layer why factor singular_values_at_most=limit?")
@dataclass(frozen=True)
class Repair:
    """Says what is done to a layer: its singular values are held to at most `limit` where there is one, and all of it
    is multiplied by `factor`. A factor of 0 takes the layer out."""

    layer: str
    why: Why
    factor: float = 1.0
    limit: float | None = None

    def applied(self, layer: LowRank) -> LowRank:
        """Return the layer after it, in its own dtype."""
        if self.limit is not None:
            layer = layer.decompose().keep(layer.rank, self.limit)
        return layer.scaled(self.factor)

    def in_words(self) -> str:
        if not self.factor:
            return f"left out ({self.why})"
        if self.limit is not None:
            return f"directions held to {self.limit:.3g} ({self.why})"
        return f"times {self.factor:.3g} ({self.why})"


def repairs_of(health: Health, factors: Mapping[str, float] | None = None) -> list[Repair]:
    """Return what heals a LoRA: broken and dead layers go, directions that stand out and layers that are loud are
    brought down to what is usual for their kind. `factors` are strengths of layers that are asked for beside
    that. They are in the order in which they are done."""
    found = []
    for layer in health.layers:
        found += _of_layer(layer, health.fence(layer))
        factor = (factors or {}).get(layer.name, 1.0)
        if factor != 1 and not any(each.layer == layer.name and not each.factor for each in found[-3:]):
            found.append(Repair(layer.name, "block", factor))
    return found


def _of_layer(layer: LayerFigures, fence: Fence) -> list[Repair]:
    if layer.broken:
        return [Repair(layer.name, "broken", 0.0)]
    if fence.dead(layer):
        return [Repair(layer.name, "dead", 0.0)]
    found = []
    if fence.stands_out(layer):
        found.append(Repair(layer.name, "outlier", limit=fence.limit(layer)))
        layer = layer.held(fence.limit(layer))
    if fence.loud(layer):
        found.append(Repair(layer.name, "loud", min(fence.share.at(layer.name) / layer.share, 1.0)))
    if fence.factor != 1:
        found.append(Repair(layer.name, "too loud as a whole", fence.factor))
    return found


def repaired(layers: Mapping[str, LowRank], repairs: Sequence[Repair]) -> dict[str, LowRank]:
    """Return the layers after the repairs; those without one are the same objects."""
    made = dict(layers)
    for repair in repairs:
        if not repair.factor:
            made.pop(repair.layer, None)
        elif repair.layer in made:
            made[repair.layer] = repair.applied(made[repair.layer])
    return made


@dataclass(frozen=True)
class Moved:
    """Says how far repairs have moved a LoRA: the norm of the difference and of what is left, over the norm before.
    Broken layers, which have no norm, are in neither."""

    distance: float
    left: float

    @classmethod
    def between(cls, before: Mapping[str, LowRank], after: Mapping[str, LowRank], broken: Sequence[str]) -> Moved:
        whole = way = left = 0.0
        for name, layer in before.items():
            if name in broken:
                continue
            kept, own = after.get(name), layer.inner(layer)
            whole += own
            if kept is layer:
                left += own
            else:
                left += kept.inner(kept) if kept is not None else 0.0
                way += layer.distance(kept) ** 2 if kept is not None else own
        return cls(sqrt(way / whole), sqrt(max(left, 0.0) / whole)) if whole > 0 else cls(0.0, 1.0)
