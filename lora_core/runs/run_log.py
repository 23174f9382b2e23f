"""The log of a run, one JSON object per line, which a resumed run takes up where its state was saved."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

RESUMED = "resumed"


class RunLog:
    """`log.jsonl`: every step and every trouble, each with its `time` in seconds since 1970. Lines wait in memory while
    the disk is full."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting = b""

    def add(self, **fields: Any) -> None:
        self._waiting += json.dumps({**fields, "time": round(time.time(), 3)}).encode() + b"\n"
        with suppress(OSError):
            self._write()

    def resume(self, events: int, step: int) -> None:
        """Cut off what was logged after the state with so many events was saved, and say that the run goes on. A log
        that cannot be read or written is as good as none."""
        with suppress(OSError):
            self._cut(events)
        if events:
            self.add(step=step, event=RESUMED)

    def sync(self) -> None:
        """All that was added is on the disk. Raises OSError when it cannot be."""
        self._write()
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())

    def _write(self) -> None:
        """Write all that waits, or nothing of it."""
        end = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "ab") as file:
                file.write(self._waiting)
        except OSError:
            if self.path.exists():
                os.truncate(self.path, end)
            raise
        self._waiting = b""

    def _cut(self, events: int) -> None:
        if not self.path.exists():
            return
        end = 0
        with open(self.path, "rb") as file:
            while events and (line := file.readline()).endswith(b"\n"):
                events -= not _says_resumed(line)
                end += len(line)
        os.truncate(self.path, end)


def _says_resumed(line: bytes) -> bool:
    try:
        return json.loads(line).get("event") == RESUMED
    except (ValueError, AttributeError, RecursionError):  # damaged
        return False
