"""A lock on a file that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if os.name == "nt":
    import msvcrt
else:
    import fcntl


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock on `path`, which is made and stays behind, empty. Raises ValueError(refusal) when it is held.

    File systems without locks, as some network shares, let everybody in.
    """
    with open(path, "a+b") as file:
        if not _lock(file):
            raise ValueError(refusal)
        yield


def _lock(file: BinaryIO) -> bool:
    if os.name == "nt":
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
