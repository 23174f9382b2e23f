"""The processes of a sweep: begun on their GPU, told to stop, waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_GPUS = "CUDA_VISIBLE_DEVICES"  # PyTorch's builds for ROCm heed it, too
_WINDOWS = sys.platform == "win32"


def begun(command: Sequence[str], place: int | None, log: Path | None) -> subprocess.Popen[bytes]:
    """Begin a process that hears of Ctrl-C from us alone. `place` is its number among those side by side, and so its
    GPU; None: all GPUs are its own. What it says goes into `log`, or where ours goes."""
    environment = dict(os.environ) if place is None else {**os.environ, _GPUS: gpu_of(place, os.environ)}
    apart: dict[str, Any] = {"start_new_session": True}
    if _WINDOWS:
        apart = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    if log is None:
        return subprocess.Popen(command, env=environment, **apart)
    with open(log, "ab") as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said, **apart)


def gpu_of(place: int, environment: Mapping[str, str]) -> str:
    """Return one of the GPUs that this process may see, each in its turn."""
    seen = [each.strip() for each in environment.get(_GPUS, "").split(",") if each.strip()]
    return seen[place % len(seen)] if seen else str(place)


def cancel(process: subprocess.Popen[bytes]) -> None:
    """It keeps what it has trained, and ends."""
    if process.poll() is None:
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM) if _WINDOWS else signal.SIGTERM)
