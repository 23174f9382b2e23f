"""Tells every browser how something is now: at most twice a second while it goes on, and at once how it ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from server import PromptServer

_EVERY = 0.5  # seconds


class Broadcast:
    """Sends what `made` returns, which is called in the server's thread when the time has come; where there is no
    server, nothing is sent."""

    def __init__(self, event: str, made: Callable[[], dict[str, Any]]):
        self.event, self.made = event, made
        self._due = self._over = False
        self._last = 0.0
        self._sending = threading.Lock()  # so that nothing is sent after the end

    def soon(self) -> None:
        """Something has changed."""
        server = getattr(PromptServer, "instance", None)
        if not self._due and server is not None and server.loop.is_running():
            self._due = True
            with suppress(RuntimeError):  # the loop has just been closed: the server ends
                server.loop.call_soon_threadsafe(self._wait, server.loop)

    def end(self) -> None:
        """Nothing more is sent afterwards."""
        self._send(last=True)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(max(self._last + _EVERY - time.monotonic(), 0), self._now)

    def _now(self) -> None:
        self._due, self._last = False, time.monotonic()
        self._send()

    def _send(self, last: bool = False) -> None:
        server = getattr(PromptServer, "instance", None)
        with self._sending:
            if server is not None and not self._over:
                told = self.made()
                with suppress(RuntimeError):  # as above
                    server.send_sync(self.event, told)
            self._over |= last
