"""Knows the runs below a folder by what their folders tell; what has not changed is not read again."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Collection, Iterator
from heapq import nlargest
from pathlib import Path
from typing import Any

from ..links import is_link
from .found_run import FoundRun
from .log_reading import Curve
from .setting_changes import changed

MOST_RUNS = 1000
_RUN = re.compile(r".+-[0-9a-f]{8}")
_DEEPEST = 4  # a run_name may name folders
_MOST_CURVES = 8  # of which the numbers are kept in memory
_LONGEST = 400
_PATIENCE = 5.0  # seconds, for the log of one run


class Registry:
    """The runs as they were when they were last looked at. Not for several threads at once."""

    def __init__(self, parent: Path):
        self.parent = parent
        self._runs: dict[str, FoundRun] = {}
        self._curves: dict[str, Curve] = {}

    def look(self, seconds: float = math.inf) -> int:
        """Read what is new or changed, for so many seconds; returns how many are not read yet. Of very many only those
        whose folders changed last are known."""
        until = time.monotonic() + seconds
        places = newest(self.parent)
        self._runs = {name: self._runs.get(name) or FoundRun(path, name) for name, path in places.items()}
        self._curves = {name: curve for name, curve in self._curves.items() if name in places}
        for run in self._runs.values():
            if time.monotonic() < until:
                run.look(until)
        return sum(not run.read for run in self._runs.values())

    def find(self, name: str) -> FoundRun | None:
        """The run of that id, looked at now."""
        path = dict(folders(self.parent)).get(name)
        if path is None:
            self._runs.pop(name, None)
            return None
        run = self._runs.setdefault(name, FoundRun(path, name))
        run.look(time.monotonic() + _PATIENCE)
        return run

    def summaries(self, running: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return what was read of all runs, the newest first; a bounded number of them."""
        runs = sorted((run for run in self._runs.values() if run.read), key=lambda run: -run.changed)
        before = self._before()
        return [
            {**run.summary(run.id in running), "differs": self._differs(run, before.get(run.id))}
            for run in runs[:MOST_RUNS]
        ]

    def summary(self, run: FoundRun, running: bool) -> dict[str, Any]:
        """As in `summaries`, of one that was found."""
        return {**run.summary(running), "differs": self._differs(run, self._before().get(run.id))}

    def log(self, run: FoundRun, start: int, most: int, seconds: float) -> dict[str, Any]:
        """Its numbers from a step on, thinned; what there was no time to read is told with the next call."""
        curve = self._curves.pop(run.id, None) or Curve()
        self._curves = {**dict(list(self._curves.items())[1 - _MOST_CURVES :]), run.id: curve}
        try:
            if path := run.log_path():
                curve.look(path, time.monotonic() + seconds)
        except OSError:
            curve = self._curves[run.id] = Curve()
        return {**curve.thinned(start, most), "total": run.total, "validation": run.validation()}

    def _before(self) -> dict[str, FoundRun]:
        """The run that was begun before each, of its name or else of any."""
        found, last, of_name = {}, None, {}
        for run in sorted(self._runs.values(), key=lambda run: run.begun):
            if run.fault or not run.read:
                continue
            if (before := of_name.get(run.name, last)) is not None:
                found[run.id] = before
            last = of_name[run.name] = run
        return found

    @staticmethod
    def _differs(run: FoundRun, before: FoundRun | None) -> list[list[str]]:
        if before is None or run.fault:
            return []
        return [[each[:_LONGEST] for each in change] for change in changed(before.settings, run.settings)]


def newest(parent: Path) -> dict[str, Path]:
    """Return the run folders below a folder by their names, as many as are known, those that changed last first."""
    return dict(nlargest(MOST_RUNS, folders(parent), key=lambda place: _time(place[1])))


def folders(parent: Path, depth: int = 1, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """The run folders below a folder by their names in it; links and names that cannot be printed are passed over."""
    try:
        with os.scandir(parent) as entries:
            found = sorted(entry.name for entry in entries if _is_ours(entry))
    except OSError:
        return
    for name in found:
        path = parent / name
        if _RUN.fullmatch(name) and os.path.lexists(path / "run.json"):
            yield prefix + name, path
        elif depth < _DEEPEST:
            yield from folders(path, depth + 1, f"{prefix}{name}/")


def _is_ours(entry: os.DirEntry[str]) -> bool:
    named = entry.name.isprintable() and not entry.name.startswith(".")
    return named and entry.is_dir(follow_symlinks=False) and not is_link(entry.path)


def _time(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
