"""When a run goes wrong: steps that are dropped, and a loss that has left its own history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..stored import stored

MOST_IN_A_ROW = 3  # dropped steps before the run goes back
GOOD_EVERY = 50  # steps between the states that it can go back to
LOWERED = 0.3  # what the learning rate is then multiplied by: from 1e-4 to 3e-5
_WINDOW = 50
_LEAST_RISE = math.log(3)
RUINED = 3.0  # times the loss before, at equal noise; in a healthy run it does not rise
_SURE = 10.0  # so many standard errors of a window: no false alarm in a million windows


@stored("dropped in_row rate")
@dataclass
class Health:
    """Steps dropped in all and in a row, and the factor on the learning rate: 1, or LOWERED since the run went back."""

    dropped: int = 0
    in_row: int = 0
    rate: float = 1.0


def suspicious(losses: Sequence[float]) -> bool:
    """Return whether the last of at most 100 losses may tell that the run was ruined before it has a history.

    It is the highest so far, and two and a half times any of the first three. Single losses depend on the noise level
    and prove nothing: it is reason to measure, a few times at most in a healthy run.
    """
    *before, last = losses or [math.inf]
    if not before or len(losses) > 2 * _WINDOW or not math.isfinite(last):
        return False
    return last > max(max(before), 2.5 * max(before[:3]))


def diverged(losses: Sequence[float]) -> bool:
    """Return whether the last 50 losses lie as a whole above anything that the first 50 explain.

    Medians of logarithms are compared, as single losses differ by orders of magnitude with the noise level. The rise
    must be threefold, and beyond what the spread of the first 50 lets the median of a window do by chance.
    """
    return len(losses) >= 2 * _WINDOW and _risen(losses, _WINDOW)


def quiet(losses: Sequence[float]) -> bool:
    """Return whether the last few losses give no reason to think that the run has begun to diverge."""
    return len(losses) < 2 * _WINDOW or not _risen(losses, _WINDOW // 5)


def _risen(losses: Sequence[float], count: int) -> bool:
    first, last = (_logarithms(part) for part in (losses[:_WINDOW], losses[-count:]))
    centre = median(first)
    spread = 1.4826 * median(abs(value - centre) for value in first)
    return median(last) - centre > max(_LEAST_RISE, _SURE * spread / math.sqrt(_WINDOW))


def _logarithms(losses: Sequence[float]) -> list[float]:
    return [math.log(max(loss, 1e-30)) for loss in losses]
