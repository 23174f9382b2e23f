"""Tells a picker of all LoRA files: each header is read once, and whoever has the list is told what changed."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import card, side_files


class Rules(NamedTuple):
    """Says by which rules files are judged beside what they say themselves: their state, which is another when they
    are, and what is wrong with the file at a path by them, "" for nothing."""

    state: tuple
    fault: Callable[[str], str]


NO_RULES = Rules((), lambda path: "")


@dataclass(frozen=True)
class _Entry:
    """`stamp` is what the file and those beside it were when `told` was read; () when it is to be read again. Nothing
    is told of a file that was not read yet. `change` is the number of the change that brought what is told."""

    stamp: tuple
    told: dict[str, Any] | None
    change: int


_UNKNOWN = _Entry((), None, 0)


class Library:
    """The list as it was when it was last looked at. Not for several threads at once."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)  # versions of another run of the server mean nothing in this one
        self._changes = 0
        self._entries: dict[str, _Entry] = {}
        self._gone: dict[str, int] = {}  # name: number of the change

    @property
    def version(self) -> str:
        return f"{self._run}-{self._changes}"

    def look(self, files: Mapping[str, str | None], seconds: float, rules: Rules = NO_RULES) -> None:
        """Take over the names, with paths, that there are now, and read what is new or changed for so many seconds;
        the rest is known by name alone until the next look. All are read again when the rules are others."""
        end = time.monotonic() + seconds
        for name in self._entries.keys() - files.keys():
            self._gone[name] = self._next()
        for name in self._gone.keys() & files.keys():
            del self._gone[name]
        beside = _Beside()
        self._entries = {
            name: self._entry(name, path, (*beside.stamp(path), *rules.state), end, rules)
            for name, path in files.items()
        }

    def changes(self, since: str) -> dict[str, Any]:
        """Return what has changed since a version; everything, and `since` "", when that is no version of this list. Of
        all files `unread` are known by their names alone."""
        known = self._number(since)
        return {
            "version": self.version,
            "since": since if known else "",
            "loras": [
                {"name": name, **(each.told or {})} for name, each in self._entries.items() if each.change > known
            ],
            "gone": [name for name, change in self._gone.items() if known and change > known],
            "unread": sum(not each.told for each in self._entries.values()),
        }

    def _number(self, version: str) -> int:
        run, _, number = version.partition("-")
        return int(number) if run == self._run and number.isdecimal() and len(number) < 12 else 0

    def _entry(self, name: str, path: str | None, stamp: tuple, end: float, rules: Rules) -> _Entry:
        old = self._entries.get(name, _UNKNOWN)
        if old.stamp == stamp:
            return old
        stamp, told = _read(path, stamp, rules) if time.monotonic() < end else ((), {})
        return _Entry(stamp, told, old.change if told == old.told else self._next())

    def _next(self) -> int:
        self._changes += 1
        return self._changes


class _Beside:
    """Says what lies beside files, each folder listed once: with thousands of LoRAs a look for every side file that
    there may be would take seconds."""

    def __init__(self) -> None:
        self._folders: dict[str, frozenset[str]] = {}

    def stamp(self, path: str | None) -> tuple:
        """Path, size and time of a file, and of the files beside it that tell of it; the path alone of one that is not
        there."""
        if not (own := _state(path or "")):
            return (path,)
        folder, name = os.path.split(path or "")
        there = self._names(folder)
        return (path, *own, *(
            (each, *_state(os.path.join(folder, each)))
            for each in side_files.beside(name) if os.path.normcase(each) in there
        ))  # fmt: skip

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._folders:
            try:
                self._folders[folder] = frozenset(map(os.path.normcase, os.listdir(folder or ".")))
            except OSError:
                self._folders[folder] = frozenset()
        return self._folders[folder]


def _state(path: str) -> tuple[int, ...]:
    """Size and time; () of a file that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def _read(path: str | None, stamp: tuple, rules: Rules) -> tuple[tuple, dict[str, Any]]:
    try:
        told = card.read(path or "").to_dict()
        if not told["fault"] and (fault := rules.fault(path or "")):
            told |= {"fault": fault, "ruled_out": True}
    except (OSError, ValueError):
        return (), {"fault": "the file cannot be read"}
    size, modified = stamp[1:3] or (0, 0)
    version = hashlib.blake2b(repr(stamp[1:]).encode(), digest_size=8).hexdigest()
    return stamp, {**told, "size": size, "modified": modified // 10**9, "version": version}
