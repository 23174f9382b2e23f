"""Reads what the folder of a run tells, whoever made it and when: each file once, as long as it stays the same."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..files import guard
from ..files.guard import UnreadableFileError, UnsafeFileError
from ..links import is_link
from ..stored import from_dict
from ..training.config import fingerprint
from ..training.record import Record
from . import kept_picture
from .checkpoint import validation_of
from .kept_picture import Part
from .log_reading import LogFigures, rounded
from .result import Finished
from .setting_changes import in_words

Value = TypeVar("Value")
Stamp = tuple[int, int]  # size and time
_SHEET, _LORA = re.compile(r"step_(\d{1,9})\.png"), re.compile(r"step_(\d{1,9})\.safetensors")
_MOST_JSON = 2**26  # bytes
_MOST_SHEETS = 1000
_DEEPEST = 20  # settings in settings
_LONGEST, _LONGEST_REPORT = 400, 100_000  # characters
_YOUNG = 3.0  # seconds; what a disk calls the time of a file may stay the same for so long


class FoundRun:
    """A run folder as it was when it was last looked at. Files that are links are passed over. `fault` is why it tells
    no settings, "" for a sound one."""

    def __init__(self, path: Path, name: str):
        self.path, self.id = path, name
        self.name, self.log = name[: -len("-12345678")], LogFigures()
        self.settings: Mapping[str, Any] = {}
        self.fault, self.total, self.begun, self.read = "", 0, 0.0, False
        self._words: dict[str, tuple[str, str]] = {}
        self._files: dict[str, Stamp] = {}
        self._sheets: dict[int, Stamp] = {}
        self._known: dict[str, tuple[Stamp | None, Any]] = {}
        self._stamp: tuple = ()
        self._record, self._kept_step = Record(), 0
        self._done: Finished | None = None

    def look(self, until: float = math.inf) -> None:
        """Read what is new or changed; of a long log until that moment, and the rest with the next look."""
        stamp = self._now()
        if stamp == self._stamp:
            return
        self._files = _stamps(self.path)
        sheets = {int(found[1]): s for name, s in _stamps(self._previews).items() if (found := _SHEET.fullmatch(name))}
        self._sheets = dict(sorted(sheets.items())[-_MOST_SHEETS:])
        self._look_at_settings()
        self._done = self._of("done.json", _finished)
        self._kept_step, self._record = self._of("state.safetensors", validation_of) or (0, Record())
        whole = self._look_at_log(until)
        young = time.time() - max((s[1] for s in stamp), default=0) / 1e9 < _YOUNG
        self._stamp, self.read = () if young or not whole else stamp, True

    @property
    def changed(self) -> float:
        """Seconds since 1970."""
        times = [self._files[name][1] for name in ("run.json", "log.jsonl", "done.json") if name in self._files]
        return max(times, default=0) / 1e9

    @property
    def best(self) -> int | None:
        """Return the step of the best validation."""
        return self._record.best()

    @property
    def previews(self) -> list[int]:
        return list(self._sheets)

    def loras(self) -> dict[int, str]:
        """Return the files that hold the LoRA of a step."""
        found = {int(match[1]): name for name in self._files if (match := _LORA.fullmatch(name))}
        best = self._of("best.safetensors", _step_in_header)
        if best and best == self.best:
            found.setdefault(best, "best.safetensors")
        return dict(sorted(found.items()))

    def lora(self, step: int | None) -> Path | None:
        """Return the file with the LoRA of a step; of None what came out, or else the last."""
        files = self.loras()
        step = (self._done.kept_step if self._done else max(files, default=0)) if step is None else step
        return self.path / files[step] if step in files else None

    def sheet(self, step: int) -> Path | None:
        return self._previews / f"step_{step:06d}.png" if step in self._sheets else None

    def charts(self) -> Path | None:
        return self.path / "charts.png" if "charts.png" in self._files else None

    def log_path(self) -> Path | None:
        return self.path / "log.jsonl" if "log.jsonl" in self._files else None

    def workflow(self) -> dict[str, Any] | None:
        """Read anew each time, as it may be large and is seldom asked for."""
        return _json(self.path / "workflow.json") if "workflow.json" in self._files else None

    def origin(self) -> dict[str, Any]:
        """Return which prompt of which workflow the run was begun by, and at which node, as far as the folder tells."""
        return self._of("workflow.json", _origin) or _origin_in({})

    def summary(self, running: bool) -> dict[str, Any]:
        finished = not running and (self._done is not None or 0 < self.total <= self._reached())
        return {
            "id": self.id,
            "name": self.name,
            "state": "running" if running else "finished" if finished else "stopped",
            "step": self.log.step if running else self._reached(),
            "total": self.total,
            "loss": self.log.loss,
            "best": self.best,
            "kept": self._done.kept_step if self._done else None,
            "seconds": round(self.log.seconds, 1),
            "changed": round(self.changed, 3),
            "size": sum(size for size, _ in (*self._files.values(), *self._sheets.values())),
            "previews": self.previews,
            "prompts": len({part.row for part in self.parts(self._last_sheet())}),
            "saved": list(self.loras()),
            "family": str(self._words.get("model", ("", ""))[1])[:_LONGEST],
            "summary": self._done.summary[:_LONGEST] if self._done else "",
            "workflow": self._of("workflow.json", _origin) is not None,
            "fault": self.fault,
            "problem": "",
            **self.origin(),
        }

    def details(self) -> dict[str, Any]:
        """Return what is told of one run beside its summary. `unlike` are steps whose sheet has not these
        `pictures`."""
        shown = self.parts(self._last_sheet())
        rows: dict[int, list[str]] = {}
        for part in shown:
            rows.setdefault(part.row, []).append(part.prompt[:_LONGEST_REPORT])
        return {
            "settings": [list(words) for words in self._words.values()],
            "prompts": [list(dict.fromkeys(row)) for row in rows.values()],
            "pictures": [{"prompt": part.prompt[:_LONGEST_REPORT], "kind": part.kind} for part in shown],
            "unlike": [step for step in self._sheets if not _alike(self.parts(step), shown)],
            "report": self._done.report[:_LONGEST_REPORT] if self._done else "",
            "charts": self.charts() is not None,
        }

    def validation(self) -> list[list[float | None]]:
        """(step, loss), the untouched model first."""
        base = [(0, self._record.base)] if self._record.base else []
        points = [*base, *((point.step, point.losses) for point in self._record.points)]
        return [[step, rounded(sum(losses) / len(losses))] for step, losses in points if losses]

    def parts(self, step: int | None) -> tuple[Part, ...]:
        """Return what can be cut out of the sheet of a step, if there is one."""
        if step is None or (path := self.sheet(step)) is None:
            return ()
        return self._remembered(f"previews/{step}", self._sheets[step], path, kept_picture.parts_of)

    @property
    def _previews(self) -> Path:
        return self.path / "previews"

    def _last_sheet(self) -> int | None:
        return max(self._sheets, default=None)

    def _reached(self) -> int:
        """Return where the run goes on, or ended."""
        steps = [self._done.step if self._done else 0, self._kept_step, *self.loras()]
        return max(steps)

    def _now(self) -> tuple:
        """Changes with every file that is written whole, which changes its folder, and with the log."""
        return tuple(_stamp(path) for path in (self.path, self._previews, self.path / "log.jsonl"))

    def _look_at_settings(self) -> None:
        self.begun = self._files.get("run.json", (0, 0))[1] / 1e9
        try:
            settings = (self._of("run.json", _json) or {})["settings"]
            self.total, self._words, self.settings, self.fault = _steps(settings), _shortened(settings), settings, ""
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            self.total, self._words, self.settings = 0, {}, {}
            self.fault = "run.json cannot be read"

    def _look_at_log(self, until: float) -> bool:
        if "log.jsonl" not in self._files:
            self.log = LogFigures()
            return True
        try:
            return self.log.look(self.path / "log.jsonl", until)
        except OSError:
            return True

    def _of(self, name: str, read: Callable[[Path], Value]) -> Value | None:
        """Return what a file tells, read again only when it has changed; None when it is not there."""
        stamp = self._files.get(name)
        return self._remembered(name, stamp, self.path / name, read) if stamp else None

    def _remembered(self, name: str, stamp: Stamp, path: Path, read: Callable[[Path], Value]) -> Value:
        if name not in self._known or self._known[name][0] != stamp:
            self._known[name] = stamp, read(path)
        return self._known[name][1]


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _stamps(folder: Path) -> dict[str, Stamp]:
    """Size and time of the files in a folder that is no link."""
    found: dict[str, Stamp] = {}
    try:
        if is_link(folder):
            return {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    told = entry.stat(follow_symlinks=False)
                    found[entry.name] = told.st_size, told.st_mtime_ns
    except OSError:
        return found
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_JSON + 1)
        told = json.loads(text) if len(text) <= _MOST_JSON else None
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _origin(path: Path) -> dict[str, Any] | None:
    workflow = _json(path)
    return None if workflow is None else _origin_in(workflow)


def _origin_in(workflow: Mapping[str, Any]) -> dict[str, Any]:
    extra = workflow.get("extra")
    told = extra.get("lora_loom") if isinstance(extra, dict) else None
    told = told if isinstance(told, dict) else {}
    found = {"prompt_id": told.get("prompt_id"), "node": told.get("node"), "workflow_id": workflow.get("id")}
    return {name: value[:_LONGEST] if isinstance(value, str) else None for name, value in found.items()}


def _finished(path: Path) -> Finished | None:
    """Return what a finished run told but for its losses, if the file is what was written."""
    plain = _json(path) or {}
    try:
        if plain.pop("digest") != fingerprint(plain):
            return None
        told = from_dict(Finished, {key: value for key, value in plain.items() if key not in ("key", "sha256")})
        sound = type(told.step) is type(told.kept_step) is int
        sound = sound and isinstance(told.report, str) and isinstance(told.summary, str)
        return replace(told, losses=[]) if sound else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _step_in_header(path: Path) -> int | None:
    try:
        return int(guard.inspect(path).metadata.get("ss_steps", ""))
    except (UnsafeFileError, UnreadableFileError, ValueError):
        return None


def _steps(settings: Mapping[str, Any]) -> int:
    """Raises KeyError, TypeError or ValueError for settings of no run."""
    steps = settings["train"]["steps"]
    if type(steps) is not int or steps < 1 or not _shallow(settings):
        raise ValueError("these are no settings")
    return steps


def _shallow(value: Any, depth: int = _DEEPEST) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_shallow(each, depth - 1) for each in inner)


def _shortened(settings: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        name: (word[:_LONGEST], value[:_LONGEST]) for name, (word, value) in list(in_words(settings).items())[:_LONGEST]
    }


def _alike(one: tuple[Part, ...], other: tuple[Part, ...]) -> bool:
    return [(part.prompt, part.kind) for part in one] == [(part.prompt, part.kind) for part in other]
