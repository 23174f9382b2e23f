"""Ctrl-C, SIGTERM and a closing terminal cancel what goes on, so that it is kept; the same again ends the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Ending:
    """The signal that came, 0 while none has. While Train LoRA works its own handlers are in, and hand it on."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.came = 0
        self.cancel = cancel

    def install(self) -> None:
        """Put the handlers in; what the process ignores stays ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @property
    def status(self) -> int:
        """Return the exit status that shells know: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.came or signal.SIGINT)

    def _handle(self, number: int, frame: object) -> None:
        """Writes nothing: the main thread may be in the middle of writing."""
        if self.came == number:  # a launcher hands on the terminal's and sends its own
            os._exit(self.status)
        self.came = number
        self.cancel()
