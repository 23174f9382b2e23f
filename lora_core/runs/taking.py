"""Takes a LoRA out of a run's folder for use, and takes a run's folder away."""

from __future__ import annotations

import mmap
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from ..files import guard
from ..files.hashes import file_hash
from ..files.lock import locked
from ..files.names import safe_name
from ..files.save import write_whole

_GONE = re.compile(r"\.[0-9a-f]{16}\.deleted")


def copy(source: Path, folder: Path, name: str) -> str:
    """Copy a LoRA file into `folder` as `name`, or under the first free name (`name_0002`), whole or not at all;
    returns the name. One that is there already with the same bytes is not written again.

    Raises OSError, and ValueError for a file that is no sound LoRA.
    """
    guard.inspect(source)
    digest, size = file_hash(source), source.stat().st_size
    for each in _names(name):
        path = folder / each
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(source, path)
            return each
        if path.is_file() and path.stat().st_size == size and file_hash(path) == digest:
            return each
    raise AssertionError("there is always a free name")


def remove(folder: Path) -> None:
    """Delete a run's folder. Raises ValueError while something trains in it, and OSError when the disk refuses.

    It gets another name first, so that no half of it is ever taken for a run; Windows does not rename a folder in which
    a file is open, and so none in which a run holds its lock.
    """
    gone = folder.with_name(f".{secrets.token_hex(8)}.deleted")
    refusal = f"{folder.name} is training now; stop it first"
    if os.name == "nt":
        try:
            os.replace(folder, gone)
        except PermissionError:
            raise ValueError(f"a file of {folder.name} is open; close it, or stop the run first") from None
    else:
        with locked(folder / ".lock", refusal):
            os.replace(folder, gone)
    with suppress(OSError):
        shutil.rmtree(gone)
    for left in folder.parent.iterdir():
        if _GONE.fullmatch(left.name):  # and another time the disk refused
            shutil.rmtree(left, ignore_errors=True)


def _names(name: str) -> Iterator[str]:
    yield safe_name(f"{name}.safetensors")
    for number in count(2):
        yield safe_name(f"{name}_{number:04d}.safetensors")


def _write(source: Path, path: Path) -> None:
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        with memoryview(data) as view:
            write_whole(path, view, overwrite=False)
