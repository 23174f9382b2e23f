"""Judges a run by its validation curve: is the run still gaining, has it stopped, does it overfit, has it diverged.

The draws are fixed, so two points of the curve are compared draw by draw. Two kinds of chance are reckoned with: the
spread of the differences over draws (over pictures, where there are at least 5), and the wobble of the whole curve
from one point to the next, estimated from its second differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np

from ..percent import percent
from .health import RUINED
from .record import Cell, LossExcess, Point, Record, excess, means, summed

Kind = Literal["too early", "improving", "plateau", "overfit", "diverged"]
_SURE, _VERY_SURE = 0.95, 0.9995  # one-sided
_FEWEST = 5  # points before the curve's wobble is known
_WORSE = 0.25  # share by which training loss is above its best for a run without validation to have diverged


@dataclass(frozen=True)
class CurveChange:
    """A mean paired difference as a share of the base model's loss, positive for better, with its standard error."""

    share: float
    error: float
    freedom: float

    def sure(self, level: float) -> bool:
        return self.share > quantile(level, self.freedom) * self.error

    def __abs__(self) -> CurveChange:
        return replace(self, share=abs(self.share))

    def __str__(self) -> str:
        return f"{percent(self.share)} +- {percent(self.error, 1)}"


@dataclass(frozen=True)
class Verdict:
    """`best` is the step that stands best, by loss and guided answer; None before there is one."""

    kind: Kind
    sentence: str
    best: int | None = None

    @property
    def stop(self) -> bool:
        return self.kind in ("plateau", "overfit", "diverged")


def judge(record: Record, pictures: Sequence[int], patience: int, held_out: bool) -> Verdict:
    """The verdict on a run with validation. `pictures` names the picture of each draw."""
    points = [Point(0, record.base), *record.points]
    if len(points) < 3:
        early = Verdict("too early", "too early to tell: there were fewer than two validations", record.best())
        return _ruined(points, record.best()) or early
    curve = _Curve(points, pictures)
    best = _best(record)
    return (
        _overfit(curve, record, best, held_out)
        or _diverged(curve, record, best)
        or _ruined(points, best)
        or _plateau(curve, best, patience)
        or Verdict("improving", _so_far(curve.change(0, -1)), best)
    )


def judge_training(record: Record) -> Verdict:
    """Judge by training losses alone, corrected for their noise levels: they tell only whether they ran away."""
    parts = _tenths(record)
    if len(parts) < 3:
        return Verdict("too early", "no verdict: without validation, the training loss does not show when to stop")
    last, lowest = parts[-1], min(parts[:-1], key=lambda part: part.share)
    rise = last.share - lowest.share
    if rise > _WORSE * (1 + lowest.share) and rise > 5 * sqrt(last.error**2 + lowest.error**2):
        return Verdict("diverged", f"diverged: the training loss rose by {100 * rise:.0f} %; lower the learning rate")
    return Verdict("improving", "no sign of divergence; connect Training Validation to see when to stop")


def _best(record: Record) -> int:
    """The step that stands best; 0, the untouched model's, where every other is worse."""
    standing = {0: 1.0, **record.standing()}
    return min(standing, key=standing.__getitem__)


def quantile(level: float, freedom: float) -> float:
    """Return the quantile of Student's t (Cornish-Fisher expansion, within 2 % from 4 degrees of freedom on); infinite
    below 1."""
    if freedom < 1:
        return inf
    z = NormalDist().inv_cdf(level)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def wobble(curve: Sequence[float]) -> float:
    """Standard deviation of what a smooth curve does not explain, from the median of its second differences."""
    if len(curve) < _FEWEST:
        return 0.0
    return float(np.median(np.abs(np.diff(curve, 2)))) / (0.6745 * sqrt(6))


class _Curve:
    def __init__(self, points: Sequence[Point], pictures: Sequence[int]):
        self.steps = [point.step for point in points]
        self.losses = np.array([point.losses for point in points])  # (points, draws)
        self.means = self.losses.mean(1)
        self.wobble = wobble(self.means)
        groups = sorted(set(pictures))
        self.groups = [np.flatnonzero(np.array(pictures) == each) for each in groups] if len(groups) >= 5 else None

    def change(self, before: int | slice, after: int | slice, averaged: bool = False) -> CurveChange:
        """From the mean of some points to that of others; `averaged`: their wobble is taken to average out, which it
        does not where it wanders."""
        left, right = (np.atleast_2d(self.losses[part]) for part in (before, after))
        difference = left.mean(0) - right.mean(0)
        if self.groups:
            difference = np.array([difference[group].mean() for group in self.groups])
        count = len(difference)
        error = float(difference.std(ddof=1)) / sqrt(count) if count > 1 else inf
        error = sqrt(error**2 + self.wobble**2 * (1 / len(left) + 1 / len(right) if averaged else 2))
        return CurveChange(float(difference.mean()) / self.means[0], error / self.means[0], count - 1)


def _overfit(curve: _Curve, record: Record, best: int, held_out: bool) -> Verdict | None:
    """The last three points lie above the three around the best one, while training losses do not rise."""
    at = curve.steps.index(best)
    low = slice(max(at - 1, 0), at + 2)
    if not held_out or len(curve.steps) < max(at + 5, _FEWEST):
        return None
    rise = curve.change(slice(-3, None), low)
    if not rise.sure(_VERY_SURE) or _training_rises(record, best):
        return None
    text = f"overfitting: the held-out loss rose by {rise} since step {best}, but the training loss did not"
    return Verdict("overfit", f"{text}; step {best} is the best", best)


def _diverged(curve: _Curve, record: Record, best: int) -> Verdict | None:
    """The last three points are worse than the untouched model, or worse than the best while training losses rise."""
    if len(curve.steps) < _FEWEST:
        return None
    worse = curve.change(slice(-3, None), 0)
    if worse.sure(_VERY_SURE):
        return Verdict(
            "diverged", f"diverged: the loss is {worse} above the base model's; lower the learning rate", best
        )
    at = curve.steps.index(best)
    rise = curve.change(slice(-3, None), slice(max(at - 1, 0), at + 2))
    if len(curve.steps) >= at + 5 and rise.sure(_VERY_SURE) and _training_rises(record, best):
        text = f"diverged: the validation loss rose by {rise} since step {best}, and so did the training loss"
        return Verdict("diverged", f"{text}; lower the learning rate; step {best} is the best", best)
    return None


def _ruined(points: Sequence[Point], best: int | None) -> Verdict | None:
    """The last point is far above the untouched model, on the same draws: one is enough."""
    base, last = points[0], points[-1]
    worse = sum(after > before for before, after in zip(base.losses, last.losses, strict=True))
    if last.mean <= RUINED * base.mean or worse < 0.75 * len(base.losses):
        return None
    text = f"ruined: the loss is {last.mean / base.mean:.2g} times the base model's at the same noise"
    return Verdict("diverged", f"{text}; lower the learning rate", best)


def _plateau(curve: _Curve, best: int, patience: int) -> Verdict | None:
    """The mean of the last `patience` points is not surely lower than that of as many before."""
    if len(curve.steps) < max(2 * patience, _FEWEST):
        return None
    gain = curve.change(slice(-2 * patience, -patience), slice(-patience, None), averaged=True)
    if gain.sure(_SURE):
        return None
    moved = f"the loss {'rose' if gain.share < 0 else 'fell'} by {abs(gain)}"
    text = f"no measurable gain since step {curve.steps[-patience - 1]}: {moved}"
    return Verdict("plateau", f"{text}; step {best} is the best", best)


def _so_far(gain: CurveChange) -> str:
    if gain.share > 0:
        return f"improving: the loss is {gain} below the base model's"
    return f"no gain yet: the loss is {abs(gain)} above the base model's"


def _training_rises(record: Record, since: int) -> bool:
    """Whether training losses after a step are surely above those of as many windows before."""
    after = [window for window in record.windows if window.step > since]
    before = [window for window in record.windows if window.step <= since][-len(after) :]
    if not before or not after:
        return False
    usual = means(record.bands())
    left, right = (excess(summed(w.bands for w in part), usual) for part in (before, after))
    return right.share - left.share > 2 * sqrt(left.error**2 + right.error**2)


def _tenths(record: Record) -> list[LossExcess]:
    """Training losses of ten parts of the run, against those of all of it at the same noise."""
    size, usual = max(len(record.windows) // 10, 1), means(record.bands())
    tallies: list[list[Cell]] = [window.bands for window in record.windows]
    parts = [summed(tallies[at : at + size]) for at in range(0, len(tallies) - size + 1, size)]
    return [excess(part, usual) for part in parts]
