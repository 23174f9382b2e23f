"""Writes for a person: on a terminal one line that moves, elsewhere a line a minute."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from typing import TextIO

_EVERY = 0.2  # seconds between two looks of the line that moves
_MINUTE = 60.0
_BAR = 24  # characters


class Words:
    """Progress goes to stderr, what is left of it to stdout. `silent`: only errors are told, and who tells them.

    The streams are those of now: ComfyUI puts its own in their place, which keep each line that moves.
    """

    def __init__(self, silent: bool = False, name: str = "") -> None:
        self.silent, self.name = silent, name
        self._out, self._err = sys.stdout, sys.stderr
        self._moves = self._err.isatty()
        self._shown, self._last = "", 0.0
        self._lock = threading.RLock()

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self.silent:
            self._stays(self._err, text)

    def result(self, text: str) -> None:
        """A line that stays, on stdout."""
        if not self.silent:
            self._stays(self._out, text)

    def error(self, text: str) -> None:
        self._stays(self._err, f"{self.name}: {text}" if self.name else text)

    def moving(self, text: str, now: bool = False) -> None:
        """Tell how far something is, often: what is shown is the newest once in a while."""
        wait = _EVERY if self._moves else _MINUTE
        if self.silent or not now and time.monotonic() - self._last < wait:
            return
        self._last = time.monotonic()
        if not self._moves:
            self._stays(self._err, text)
            return
        with self._lock:
            text = text[: shutil.get_terminal_size().columns - 1]
            _write(self._err, "\r" + text.ljust(len(self._shown)))
            self._shown = text

    def clear(self) -> None:
        """Take the line that moves away."""
        with self._lock:
            if self._shown:
                _write(self._err, "\r" + " " * len(self._shown) + "\r")
                self._shown = ""

    def mind_logging(self) -> None:
        """From now on what is logged does not begin in the line that moves."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._before_record)

    def _before_record(self, record: logging.LogRecord) -> bool:
        self.clear()
        return True

    def _stays(self, stream: TextIO, text: str) -> None:
        with self._lock:
            self.clear()
            _write(stream, text + "\n")


def _write(stream: TextIO, text: str) -> None:
    """Windows' terminals cannot show every letter."""
    coding = stream.encoding or "ascii"
    stream.write(text.encode(coding, "replace").decode(coding))
    stream.flush()


def bar(done: float, total: float) -> str:
    """Return it in letters that every terminal has."""
    full = round(_BAR * min(max(done / total, 0.0), 1.0)) if total else 0
    return f"[{'#' * full}{'.' * (_BAR - full)}]"


def clock(seconds: float) -> str:
    """Return `1:02`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
