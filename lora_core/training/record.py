"""Holds what a run remembers of its steps: losses by noise level and by picture, norms, and the validation curve.

It is part of the run's exact state. Losses are tallied in `BANDS` equal bands of u, the quantile of the noise level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from ..stored import as_dict, from_dict, stored
from .steps import Look, StepResult

BANDS = 8
_WINDOWS = 100  # the most that are kept of a run
Cell = list[float]  # count, sum and sum of squares of losses


def band(u: float) -> int:
    return min(int(u * BANDS), BANDS - 1)


@stored("step count bands grad_norm grad_peak text_norm preservation sizes bare?")
@dataclass
class Window:
    """`count` steps in a row, the last of them `step`: losses by band, mean gradient norms (of all, and of the text
    encoders), the highest norm, the mean preserving loss of all steps but the `bare` ones, which have none (not counted
    where none has one), and norms of delta_W relative to the weights' by part."""

    step: int = 0
    count: int = 0
    bands: list[Cell] = field(default_factory=lambda: cells())
    grad_norm: float = 0.0
    grad_peak: float = 0.0
    text_norm: float = 0.0
    preservation: float = 0.0
    sizes: list[float] = field(default_factory=list)
    bare: int = 0

    def take(self, result: StepResult) -> None:
        self.step, self.count = result.step, self.count + 1
        self.grad_norm += (result.grad_norm - self.grad_norm) / self.count
        self.grad_peak = max(self.grad_peak, result.grad_norm)
        self.text_norm += (result.text_norm - self.text_norm) / self.count
        if result.preservation:
            self.bare = self.bare if self.preservation else self.count - 1
            self.preservation += (result.preservation - self.preservation) / (self.count - self.bare)
        else:
            self.bare += bool(self.preservation)
        tally(self.bands, result.looks)


@stored("step losses")
@dataclass
class Point:
    """One validation: after which step, and the loss of every fixed draw."""

    step: int
    losses: list[float]

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)


@stored("windows images key base points guided")
@dataclass
class Record:
    """`images` are tallies by index of the picture. `key` names the draws that `base` (the untouched model, at step 0)
    and `points` belong to. `guided` are the errors of the guided answer by step, as text, that of the untouched model
    at "0"; runs of version 0.1.0 have none."""

    windows: list[Window] = field(default_factory=list)
    images: dict[str, list[Cell]] = field(default_factory=dict)
    key: str = ""
    base: list[float] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    guided: dict[str, list[float]] = field(default_factory=dict)

    def take(self, result: StepResult, steps: int) -> bool:
        """Tally a step of a run of `steps`; True when it closed a window, whose `sizes` are then to be set."""
        if self.windows and self.windows[-1].step >= result.step:
            self.go_back(result.step)
        length = -(-steps // _WINDOWS)
        if not self.windows or self.windows[-1].count >= length:
            self.windows.append(Window())
        self.windows[-1].take(result)
        for look in result.looks:
            tally(self.images.setdefault(str(look.index), cells()), [look])
        return self.windows[-1].count == length or result.step == steps

    def go_back(self, step: int) -> None:
        """The run is about to do that step again: what was seen of it and of later ones does not count."""
        self.windows = [window for window in self.windows if window.step < step]
        self.points = [point for point in self.points if point.step < step]
        self.guided = {key: errors for key, errors in self.guided.items() if int(key) < step}

    def bands(self) -> list[Cell]:
        """Return all training losses."""
        return summed(window.bands for window in self.windows)

    def answers(self) -> dict[int, float]:
        """Return the mean error of the guided answer by step; empty where not every validation has looked at it."""
        steps = (0, *(point.step for point in self.points))
        there = all(str(step) in self.guided for step in steps)
        return {step: _mean(self.guided[str(step)]) for step in steps} if there else {}

    def standing(self) -> dict[int, float]:
        """Return each validation against the untouched model's 1: the mean of its loss and of its guided answer, or its
        loss alone where that is not known of all of them."""
        base, answers = _mean(self.base) or 1.0, self.answers()
        found = {point.step: point.mean / base for point in self.points}
        if not answers:
            return found
        return {step: (loss + answers[step] / (answers[0] or 1.0)) / 2 for step, loss in found.items()}

    def best(self) -> int | None:
        """Return the step that stands best; None before there is one."""
        found = self.standing()
        return min(found, key=found.__getitem__) if found else None

    def best_point(self) -> Point:
        """Return the validation that stands best. Raises ValueError where there is none."""
        standing = self.standing()
        return min(self.points, key=lambda point: standing[point.step])

    def plain(self) -> dict[str, Any]:
        """Return what version 0.1.0 reads, which refuses anything else; `guided` is kept beside it."""
        return {key: value for key, value in as_dict(self).items() if key != "guided"}

    @classmethod
    def of(cls, plain: dict[str, Any], guided: dict[str, list[float]] | None = None) -> Record:
        windows = [from_dict(Window, window) for window in plain["windows"]]
        points = [from_dict(Point, point) for point in plain["points"]]
        return from_dict(cls, {**plain, "windows": windows, "points": points, "guided": guided or {}})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def cells() -> list[Cell]:
    return [[0, 0.0, 0.0] for _ in range(BANDS)]


def tally(into: list[Cell], looks: Iterable[Look]) -> None:
    for look in looks:
        cell = into[band(look.u)]
        cell[0], cell[1], cell[2] = cell[0] + 1, cell[1] + look.loss, cell[2] + look.loss**2


def summed(tallies: Iterable[list[Cell]]) -> list[Cell]:
    total = cells()
    for each in tallies:
        for into, cell in zip(total, each, strict=True):
            into[:] = [a + b for a, b in zip(into, cell, strict=True)]
    return total


def means(tallies: list[Cell]) -> list[float | None]:
    """Mean loss by band, None where nothing was drawn."""
    return [cell[1] / cell[0] if cell[0] else None for cell in tallies]


@dataclass(frozen=True)
class LossExcess:
    """Says how far losses lie above (below: negative) what is usual at the same noise, as a share, with its standard
    error; of `count` draws."""

    share: float
    error: float
    count: int


def excess(tallies: list[Cell], usual: list[float | None]) -> LossExcess:
    """The mean of `loss / usual - 1` over all draws; bands in which nothing is usual or all is 0 do not count."""
    count, total, squares = 0, 0.0, 0.0
    for (n, values, square), mean in zip(tallies, usual, strict=True):
        if mean:
            count, total, squares = count + int(n), total + values / mean, squares + square / mean**2
    if not count:
        return LossExcess(0.0, float("inf"), 0)
    mean = total / count
    spread = max(squares / count - mean**2, 0.0) * count / max(count - 1, 1)
    return LossExcess(mean - 1, sqrt(spread / count) if count > 1 else float("inf"), count)
