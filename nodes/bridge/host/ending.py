"""Ctrl-C, SIGTERM and a closing terminal while a run trains: they cancel it, and end the process once it is saved."""

from __future__ import annotations

import ctypes
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import comfy.model_management
from server import PromptServer

log = logging.getLogger("lora_loom")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
_CLOSING = (2, 5, 6)  # Windows' events of a console: closed, log-off, shutdown
_PATIENCE = 4.5  # seconds; Windows ends the process 5 seconds after it was told
_REST = 5.0  # seconds


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, a signal that would end the process is a cancel; what runs inside saves, and on leaving the process ends
    as it would have. A second signal ends it at once. What the process ignores stays ignored.

    Handlers belong to the main thread, where ComfyUI's server runs; without one, everything is as it was.
    """
    ending, closing = _Ending(), _Closing()
    _in_main_thread(ending.install)
    closing.watch(_kernel())
    try:
        yield
    finally:
        closing.leave()
        if ending.came:
            log.warning("%s: the run is saved, and ComfyUI ends", signal.Signals(ending.came).name)
        _in_main_thread(ending.leave, ready=_prompt_is_over() if ending.came else _now)


class _Ending:
    """The handlers of one run, and the signal that came, if any."""

    def __init__(self) -> None:
        self.came = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._cancel)

    def leave(self) -> None:
        """Handlers that others have put in since stay."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._cancel:
                signal.signal(number, before)
        if self.came:
            signal.raise_signal(self.came)

    def _cancel(self, number: int, frame: object) -> None:
        """Writes nothing: the main thread may be in the middle of writing."""
        again, self.came = self.came, number
        if again:
            self.leave()
        comfy.model_management.interrupt_current_processing()


class _Closing:
    """Windows tells a closing console in a thread of its own, and ends the process when that returns."""

    def __init__(self) -> None:
        self._saved = threading.Event()
        self._routine: Any = None
        self._kernel: Any = None

    def watch(self, kernel: Any) -> None:
        if kernel is not None:
            self._kernel, windows = kernel, cast(Any, ctypes)  # WINFUNCTYPE is there on Windows alone
            self._routine = windows.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)(self.handle)
            kernel.SetConsoleCtrlHandler(self._routine, 1)

    def leave(self) -> None:
        self._saved.set()
        if self._kernel is not None:
            self._kernel.SetConsoleCtrlHandler(self._routine, 0)

    def handle(self, event: int) -> int:
        """0: the next handler does what it would have done."""
        if event in _CLOSING:
            comfy.model_management.interrupt_current_processing()
            self._saved.wait(_PATIENCE)
        return 0


def _kernel() -> Any:
    return getattr(getattr(ctypes, "windll", None), "kernel32", None)


def _prompt_is_over() -> Callable[[], bool]:
    """Tell, each time it is called, whether what is executed now has come to its end: Python cannot end while another
    thread frees tensors without aborting. Waits no longer than _REST."""
    queue, end = getattr(_server(), "prompt_queue", None), time.monotonic() + _REST
    if queue is None:
        return _now
    before = {item[1] for item in queue.get_current_queue_volatile()[0]}

    def over() -> bool:
        now = {item[1] for item in queue.get_current_queue_volatile()[0]}
        return not before & now or time.monotonic() > end

    return over


def _now() -> bool:
    return True


def _server() -> Any:
    return getattr(PromptServer, "instance", None)


def _in_main_thread(call: Callable[[], None], ready: Callable[[], bool] = _now) -> None:
    """Now, or as soon as it is `ready` and the server's loop comes to it, in the order of calls; nowhere when that runs
    elsewhere."""
    if threading.current_thread() is threading.main_thread():
        call()
        return
    loop: Any = getattr(_server(), "loop", None)

    def in_loop() -> None:
        if threading.current_thread() is threading.main_thread():
            call() if ready() else loop.call_later(0.02, in_loop)

    if loop is not None and loop.is_running():
        loop.call_soon_threadsafe(in_loop)
