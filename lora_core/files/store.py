"""Adapters of files, read once and kept while there is room and the file is the same."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..adapter import Adapter
from .formats import read
from .guard import opened
from .strength import config_of

_SAMPLES, _SAMPLE = 64, 4096  # blocks across a file, and bytes of each


class State(NamedTuple):
    """Distinguishes a file from another of its name; `sample` is the hash of blocks from all over it, header included,
    and `configured` when PEFT's configuration of it was written, 0 when there is none."""

    size: int
    modified: int
    sample: bytes
    configured: int

    @classmethod
    def of(cls, path: Path) -> State:
        with opened(path) as file:
            found = os.fstat(file.fileno())
            digest = hashlib.sha256()
            for number in range(_SAMPLES):
                file.seek(max(0, found.st_size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
        beside = config_of(path)
        return cls(
            found.st_size, found.st_mtime_ns, digest.digest(), beside.stat().st_mtime_ns if beside else 0
        )  # fmt: skip


class Store:
    """The least recently used adapters go first: when there are more than `most`, or when `is_tight()`.

    The latest stays. Factors in use, such as those of patches on a loaded model, live as long as they are used.
    """

    def __init__(
        self, is_tight: Callable[[], bool], most: int = 64, reader: Callable[[Path], Adapter] = read
    ):  # fmt: skip
        self._is_tight, self._most, self._reader = is_tight, most, reader
        self._kept: OrderedDict[Path, tuple[State, Adapter]] = OrderedDict()

    def read(self, path: Path) -> Adapter:
        """Return what the reader, by default `formats.read`, makes of a file; the same object as before for a file of
        the same size, time and sample."""
        state = State.of(path)
        kept = self._kept.get(path)
        adapter = kept[1] if kept and kept[0] == state else self._reader(path)
        self._kept[path] = state, adapter
        self._kept.move_to_end(path)
        while len(self._kept) > 1 and (len(self._kept) > self._most or self._is_tight()):
            self._kept.popitem(last=False)
        return adapter
