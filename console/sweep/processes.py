"""The processes of a sweep: each begun anew, on its GPU, told to stop, waited for."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from os.path import expandvars
from pathlib import Path

_VARIABLE = "$CUDA_VISIBLE_DEVICES"
_WINDOWS = sys.platform == "win32"


class Process:
    """headless.py with these arguments in an interpreter of its own. `place` is its number among those side by side,
    and so its GPU; None: all GPUs are its own. What it says goes into `log`, or where ours goes."""

    def __init__(self, pack: Path, arguments: Sequence[str], place: int | None = None, log: Path | None = None) -> None:
        arguments = [*arguments, *(() if place is None else ("--cuda-device", gpu(place)))]
        self._process = multiprocessing.get_context("spawn").Process(target=_child, args=(pack, arguments, log))
        self._process.start()

    @property
    def status(self) -> int | None:
        """Return its exit status, that of a signal below 0; None while it goes on."""
        return self._process.exitcode

    def cancel(self) -> None:
        """It keeps what it has trained, and ends. On Windows the console has told it."""
        if not _WINDOWS and self.status is None:
            self._process.terminate()


def gpu(place: int, visible: str = "") -> str:
    """Return one of the GPUs that this process may see, each in its turn."""
    visible = visible or expandvars(_VARIABLE).replace(_VARIABLE, "")
    seen = [each.strip() for each in visible.split(",") if each.strip()]
    return seen[place % len(seen)] if seen else str(place)


def _child(pack: Path, arguments: Sequence[str], log: Path | None) -> None:
    from ..main import main

    if not _WINDOWS:
        os.setsid()  # Ctrl-C reaches us alone, and we pass it on once
    if log is not None:
        with open(log, "ab") as said:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(said.fileno(), stream.fileno())
    main(pack, arguments)
