"""A method and strengths proposed from how the LoRAs overlap, with the reason. A proposal, not a verdict.

What is looked at is the cosine between two LoRAs' corrections, over all layers (`analysis.interference`). Unrelated
LoRAs are near 0 and add up as they are. The bounds are rules of thumb: no study ties such figures to what one sees in
pictures. Shared directions alone are no reason for anything: LoRAs that one trainer began from the same seed share
what they read and may still have nothing to do with each other.

Only methods that leave unrelated LoRAs as they are get proposed. TIES does not: of two that work against each other by
a cosine of -0.17 the sum keeps 0.83 of each and TIES 0.57, and of six strangers beside them 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import sqrt

import numpy as np

from ..analysis.figures import Pairs
from ..analysis.interference import measure
from ..analysis.layer_sum import FigureSettings
from ..families.distilled import few_step_mark
from ..stack.weighted import Weighted, check_finite
from . import SUM

_ALIKE, _SAME, _AGAINST = 0.15, 0.5, -0.15


@dataclass(frozen=True)
class Proposal:
    """`parts` are the given ones, at the proposed strengths."""

    method: str
    parts: list[Weighted]
    reasons: list[str]


def propose(parts: Sequence[Weighted]) -> Proposal:
    """LoRAs that were distilled to few steps only work at their own strength and keep it. Raises ValueError when one
    holds NaN or infinite values."""
    check_finite(parts)
    parts = list(parts)
    fixed = [part.name for part in parts if few_step_mark(part.name)]
    free = [index for index, part in enumerate(parts) if part.name not in fixed and _acts(part)]
    notes = [f"auto: {name} keeps its strength, because it is made for few sampling steps" for name in fixed]
    if any(min(part.strength, part.text_strength) < 0 for part in parts):
        return Proposal(SUM, parts, [*notes, "auto: exact sum, because one LoRA is subtracted on purpose"])
    if len(free) < 2:
        return Proposal(SUM, parts, [*notes, "auto: exact sum, because there are no two LoRAs to compare"])
    total = measure(parts, work=FigureSettings(brief=True)).total
    cosines = {pair: total.cos(*pair) for pair in combinations(free, 2)}
    alike, against = (choose(cosines, key=cosines.__getitem__) for choose in (max, min))
    pair = f"{parts[alike[0]].name} and {parts[alike[1]].name}"
    if not fixed and cosines[alike] > _SAME:
        reason = f"{pair} do nearly the same, and a sum would count that twice (cosine {cosines[alike]:.2f})"
        return Proposal("orthogonal", parts, [*notes, f"auto: orthogonal, because {reason}"])
    rivals = f"{parts[against[0]].name} and {parts[against[1]].name}"
    if cosines[against] < -_SAME:
        reason = f"{rivals} undo each other (cosine {cosines[against]:.2f}): leave one of them out"
        return Proposal(SUM, parts, [*notes, f"auto: exact sum, because no method can restore what cancels; {reason}"])
    if cosines[against] < _AGAINST and not fixed:
        reason = (
            f"{rivals} work against each other, and a sum would cancel part of both (cosine {cosines[against]:.2f})"
        )
        return Proposal("orthogonal", parts, [*notes, f"auto: orthogonal, because {reason}"])
    if cosines[alike] > _ALIKE:
        return _quieter(
            parts,
            total.inner,
            free,
            [*notes, f"auto: exact sum with lower strengths, because {pair} overlap (cosine {cosines[alike]:.2f})"],
        )
    if cosines[against] < _AGAINST:
        reason = f"{rivals} work against each other (cosine {cosines[against]:.2f}), and this is not changed"
        return Proposal(SUM, parts, [*notes, f"auto: exact sum at these strengths; {reason}"])
    figure = f"they hardly overlap (largest cosine {cosines[alike]:.3f}, {pair})"
    return Proposal(SUM, parts, [*notes, f"auto: exact sum at these strengths, because {figure}"])


def _acts(part: Weighted) -> bool:
    """Whether it changes anything: one that was never trained is zero."""
    return any(part.strength_of(name) and bool(layer.lora_B.any()) for name, layer in part.adapter.layers.items())


def _quieter(parts: list[Weighted], inner: Pairs, free: list[int], notes: list[str]) -> Proposal:
    """As loud together as they would be if they had nothing in common."""
    block = inner[np.ix_(free, free)]
    scale = sqrt(block.trace() / max(block.sum(), block.trace()))
    for index in free:
        part = parts[index]
        parts[index] = replace(part, strength=part.strength * scale, text_strength=part.text_strength * scale)
    told = ", ".join(f"{parts[index].name} {parts[index].strength:.3g}" for index in free)
    return Proposal(
        SUM,
        parts,
        [*notes, f"auto: strengths multiplied by {scale:.2f}, so that the shared part is not too strong: {told}"],
    )
