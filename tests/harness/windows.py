"""Refuses on Linux what Windows does not let a program do with a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch


def mapped_below(folder: Path) -> list[str]:
    """Return the files below a folder that this process has mapped; none where /proc is not there."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    start = str(folder.resolve()) + os.sep
    return sorted(path for path in paths if path.startswith(start))


def opened_below(folder: Path) -> list[str]:
    """Return the files below a folder that this process has open."""
    start, found = str(folder.resolve()) + os.sep, []
    for handle in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            found.append(os.readlink(handle))
    return sorted(path for path in found if path.startswith(start))


@contextmanager
def replacing_as_windows() -> Iterator[list[Path]]:
    """os.replace and os.rename refuse, as Windows does, a file that this process has open or mapped: its source as well
    as its target. Yields what was refused so far; whoever was refused may go on without."""
    refused: list[Path] = []
    if sys.platform != "linux":
        yield refused
        return
    real = os.replace

    def replace(source: str | os.PathLike[str], target: str | os.PathLike[str], **where: int) -> None:
        for path in (Path(source).resolve(), Path(target).resolve()):
            held = [*mapped_below(path.parent), *opened_below(path.parent)]
            if str(path) in held:
                refused.append(path)
                raise PermissionError(13, "The process cannot access the file because it is in use", str(path))
        real(source, target, **where)

    with patch("os.replace", replace), patch("os.rename", replace):
        yield refused
