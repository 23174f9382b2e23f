"""Reads the log of a run while it grows: each time what is new, and never more of it than asked."""

from __future__ import annotations

import json
import math
import time
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import Any, BinaryIO

from .run_log import RESUMED

WEIGHT = 0.97  # of what was, in the smoothed loss: as in `plot.smooth`
MOST_STEPS = 1_000_000
_PART = 2**20  # bytes that are read at once; a longer line is none of ours
_TAIL = 2**15  # bytes, from which the smoothed loss is known to a thousandth
_SAME = 64  # bytes before the place that was reached, by which a file is known to be the one that was read
_MOST_EVENTS = 200
_LONGEST = 400


class _Growing:
    """A file of lines and how far it was read. One that was cut or replaced is read anew."""

    def __init__(self) -> None:
        self._reached, self._before = 0, b""

    def look(self, path: Path, until: float = math.inf) -> bool:
        """Take what is new, until that moment (`time.monotonic`); False when there is more. Raises OSError."""
        with open(path, "rb") as file:
            if not self._goes_on(file):
                self._reached, self._before = 0, b""
                self.forget()
            while lines := self._next(file):
                self.take(lines)
                if time.monotonic() > until:
                    return False
        return True

    def forget(self) -> None:
        raise NotImplementedError

    def take(self, lines: bytes) -> None:
        """Some whole lines."""
        raise NotImplementedError

    def _goes_on(self, file: BinaryIO) -> bool:
        file.seek(self._reached - len(self._before))
        return file.read(len(self._before)) == self._before

    def _next(self, file: BinaryIO) -> bytes:
        """Whole lines only: the last one may be in the middle of being written."""
        file.seek(self._reached)
        part = file.read(_PART)
        lines = part[: part.rfind(b"\n") + 1]
        self._reached += len(lines)
        self._before = (self._before + lines[-_SAME:])[-_SAME:]
        return lines


class Curve(_Growing):
    """All numbers of a log by step: those that were not taken back since."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self.steps = array("i")
        self.losses, self.rates = array("d"), array("d")
        self.events: list[tuple[int, str]] = []
        self._averages, self._norms = array("d"), array("d")

    def take(self, lines: bytes) -> None:
        for line in lines.splitlines():
            told = parsed(line)
            step, loss, event = told.get("step"), told.get("loss"), told.get("event")
            if type(step) is not int or not 0 <= step <= MOST_STEPS:
                continue
            if isinstance(event, str):
                self.events = [*self.events[1 - _MOST_EVENTS :], (step, event[:_LONGEST])]
            elif step and (loss := _number(loss)) is not None:
                self._add(step, loss, _number(told.get("learning_rate")))

    @property
    def last(self) -> int:
        return self.steps[-1] if self.steps else 0

    def smooth(self, index: int) -> float:
        return self._averages[index] / self._norms[index]

    def thinned(self, start: int, most: int) -> dict[str, Any]:
        """Steps from `start` on, at most so many, the last one always among them."""
        first = bisect_left(self.steps, start)
        stride = max(-(-(len(self.steps) - first) // most), 1)
        shown = range(len(self.steps) - 1, first - 1, -stride)[::-1]
        return {
            "from": start,
            "next": max(self.last + 1, start),
            "steps": [self.steps[i] for i in shown],
            "loss": [rounded(self.smooth(i)) for i in shown],
            "raw": [rounded(self.losses[i]) for i in shown],
            "learning_rate": [rounded(self.rates[i]) for i in shown],
            "events": [[step, text] for step, text in self.events if step >= start],
        }

    def _add(self, step: int, loss: float, rate: float | None) -> None:
        while self.steps and self.steps[-1] >= step:
            for values in (self.steps, self.losses, self.rates, self._averages, self._norms):
                values.pop()
        average, norm = (self._averages[-1], self._norms[-1]) if self.steps else (0.0, 0.0)
        self.steps.append(step)
        self.losses.append(loss)
        self.rates.append(math.nan if rate is None else rate)
        self._averages.append(WEIGHT * average + (1 - WEIGHT) * loss)
        self._norms.append(WEIGHT * norm + 1 - WEIGHT)


class LogFigures(_Growing):
    """Says what a log comes to, without a look at each of its lines: the last step, the loss there, and how long it
    took."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self._tail, self._paused = b"", 0.0
        self._first: float | None = None
        self._last: float | None = None
        self.step, self.loss = 0, None

    @property
    def seconds(self) -> float:
        """Without the time between a stop and the moment at which the run went on."""
        return max((self._last or 0.0) - (self._first or 0.0) - self._paused, 0.0)

    def look(self, path: Path, until: float = math.inf) -> bool:
        whole, curve = super().look(path, until), Curve()
        curve.take(self._tail)
        self.step = curve.last
        self.loss = rounded(curve.smooth(-1)) if curve.steps else None
        return whole

    def take(self, lines: bytes) -> None:
        if self._first is None:
            self._first = _time(lines[: lines.find(b"\n")])
        at = lines.find(RESUMED.encode())
        while at >= 0:
            begin, end = lines.rfind(b"\n", 0, at) + 1, lines.find(b"\n", at)
            self._pause(lines[begin:end], _time(_last_line(lines, begin)) if begin else self._last)
            at = lines.find(RESUMED.encode(), end)
        self._last = _time(_last_line(lines, len(lines))) or self._last
        self._tail = (self._tail + lines[-_TAIL:])[-_TAIL:]

    def _pause(self, line: bytes, before: float | None) -> None:
        now = _time(line)
        if parsed(line).get("event") == RESUMED and before is not None and now is not None:
            self._paused += max(now - before, 0.0)


def parsed(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line; an empty one of a line that is damaged or something else."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def rounded(value: float) -> float | None:
    """Six digits, as a browser needs no more; None for what is no number in JSON."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _number(value: Any) -> float | None:
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:
        return None


def _time(line: bytes) -> float | None:
    return _number(parsed(line).get("time"))


def _last_line(lines: bytes, end: int) -> bytes:
    """The line that ends there."""
    return lines[lines.rfind(b"\n", 0, end - 1) + 1 : end]
