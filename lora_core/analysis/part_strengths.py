"""Proposes strengths for parts of a LoRA: those that keep its concept and spare what else it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..families.blocks import block_of, parts
from ..training.strengths import StrengthPoint
from .suggestion import Without

KEPT, SPARED = 0.95, 0.05  # of the concept in all, and of what else changes by each part that is turned down
LEVELS = (0.0, 0.5)
Look = Callable[[Mapping[str, float]], StrengthPoint]  # with layers at these factors, as shares of what there is at 1


@dataclass(frozen=True)
class PartStrengths:
    """Holds what is left without each part, the factors that are proposed, by part, and what is left with those, as
    shares of what there is without them."""

    without: tuple[Without, ...]
    factors: Mapping[str, float]
    concept: float = 1.0
    leak: float = 1.0

    def text(self) -> str:
        """Return the strengths as Load LoRA Stack takes them for a row; empty where nothing is proposed."""
        return ", ".join(f"{part}={factor:g}" for part, factor in self.factors.items())


def sections(layers: Iterable[str], each_block: bool) -> dict[str, list[str]]:
    """Return the layers by the name of their block, or of their part of the model (`blocks.parts`)."""
    if not each_block:
        return parts(layers)
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(str(block_of(layer)), []).append(layer)
    return found if len(found) > 1 else {}


def proposed(named: Mapping[str, Sequence[str]], look: Look) -> PartStrengths:
    """Look at the LoRA without each part, then turn parts down, those first that lose least for what they spare, for as
    long as `KEPT` of the concept stays and each spares `SPARED` of what else changes."""
    points = {part: look(dict.fromkeys(layers, 0.0)) for part, layers in named.items()}
    without = tuple(Without(part, point.concept, point.leak) for part, point in points.items())
    factors: dict[str, float] = {}
    now = StrengthPoint(1.0, 1.0, 1.0)
    for part in sorted(named, key=lambda part: points[part].leak - min(points[part].concept, 1.0)):
        for level in LEVELS if points[part].leak <= 1 - SPARED else ():
            tried = {**factors, part: level}
            there = points[part] if tried == {part: 0.0} else look(of_layers(tried, named))
            if there.concept >= KEPT and there.leak <= now.leak - SPARED:
                factors, now = tried, there
                break
    return PartStrengths(without, factors, now.concept, now.leak)


def of_layers(factors: Mapping[str, float], named: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the factor of every layer of these parts."""
    return {layer: factor for part, factor in factors.items() for layer in named[part]}
