"""Judges a slider by what it draws: where between its strengths pictures change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from ..percent import whole_percent

_HARDLY, _MOSTLY = 0.25, 0.75  # of the way, beyond -1 and 1, where 0.5 is even


def where(columns: Sequence[Sequence[Image.Image]], unit: float = 1.0) -> str:
    """Return, with its figures and what to do, between which strengths pictures change. `columns` are of strengths -2,
    -1, 0, 1 and 2 times a unit, each with a picture of every prompt; how far two are apart is their mean absolute
    difference. Empty where nothing changes at all."""
    steps = [_apart(low, high) for low, high in pairwise(columns)]
    if not sum(steps):
        return ""
    low, near_low, near_high, high = (step / sum(steps) for step in steps)
    shares = (
        f"{whole_percent(low)} of the change lies below {-unit:g}, {whole_percent(near_low + near_high)} between "
        f"{-unit:g} and {unit:g} ({whole_percent(near_low)} below 0), {whole_percent(high)} above {unit:g}"
    )
    if low + high < _HARDLY:
        return (
            f"Pictures hardly change beyond {-unit:g} and {unit:g}: {shares}. Use it between these, or train with half "
            "the guidance for steps that are more even."
        )
    if low + high > _MOSTLY:
        return f"Pictures change most beyond {-unit:g} and {unit:g}: {shares}. Raise the guidance, or train longer."
    return f"Pictures change all the way from {-2 * unit:g} to {2 * unit:g}: {shares}."


def _apart(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
    differences = (np.asarray(a, dtype=np.float64) - np.asarray(b) for a, b in zip(one, other, strict=True))
    return float(np.mean([np.abs(each).mean() for each in differences]))
