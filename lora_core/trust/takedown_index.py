"""Where in a takedown list something is said of a hash, and the sketches in it: found once per state of the file.

A line is looked at closely only when it is asked for. Until then it counts as bad when it is too long, is not one
table from its first character to its last, or names no file.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.cache import Cache
from .sketches import LENGTH, VERSION, WRITTEN
from .takedown_entry import LONGEST

MOST_LINES, MOST_SKETCHES = 1_000_000, 20_000
_BLOCK = 2**24  # bytes that are read at a time
_HASHED = re.compile(rb'"(?:data|content)_sha256"\s*:\s*"([0-9a-f]{64})"')
_SKETCHED = re.compile(rb'"sketch"\s*:\s*"%s:([A-Za-z0-9+/]{%d}=)"' % (VERSION.encode(), WRITTEN - 1))
_MOST_ALIKE = 64  # lines that are looked at for one hash
_DIGITS = 15  # of a hash, which fit a signed number of 64 bits


class Index(NamedTuple):
    """`hashes` [n], ascending, are the first digits of hashes as numbers, and `places` [n] the bytes at which their
    lines begin; `sketches` [m, LENGTH] are those of the lines at `sketched` [m], in steps of 8 bits. `lines` are all
    that were read, `bad` those that are no entries; `cut` tells that there are more."""

    hashes: Tensor
    places: Tensor
    sketches: Tensor
    sketched: Tensor
    lines: int = 0
    bad: int = 0
    cut: bool = False

    def lines_of(self, sha256: str) -> list[int]:
        """Return the places of lines that may name a hash."""
        wanted = torch.tensor(int(sha256[:_DIGITS], 16))
        first, last = (int(torch.searchsorted(self.hashes, wanted, right=right)) for right in (False, True))
        return sorted(set(self.places[first : min(last, first + _MOST_ALIKE)].tolist()))

    def similarities(self, found: Tensor) -> Tensor:
        """Return the cosine of a sketch, [LENGTH], with each in the list, [m]."""
        pieces = [block.float() for block in self.sketches.split(512)]
        if not pieces or not found.norm():
            return torch.zeros(len(self.sketches))
        similar = torch.cat([torch.mv(piece, found) / piece.norm(dim=1).clamp(min=1e-9) for piece in pieces])
        return similar / found.norm()


def read(path: Path, cache: Cache | None = None) -> Index:
    """Return the index of a list, kept in the cache for as long as the file has its size and time. Raises OSError."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        key = hashlib.sha256(f"{path.name} {found.st_size} {found.st_mtime_ns} {VERSION}".encode()).hexdigest()[:32]
        kept = cache.get(key) if cache else None
        if isinstance(kept, dict) and kept.keys() == set(Index._fields):
            return Index(**kept)
        index = _built(file)
    if cache:
        cache.put(key, index._asdict())
    return index


class _Found:
    """Holds what the blocks of a file so far have."""

    def __init__(self) -> None:
        self.lines = self.bad = 0
        self.hashes: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.sketches: list[bytes] = []
        self.sketched: list[int] = []

    def add(self, at: int, block: bytes) -> None:
        text = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        ends = ends if block.endswith(b"\n") else np.append(ends, len(block))
        starts = np.append(len(codecs.BOM_UTF8) * (not at and block.startswith(codecs.BOM_UTF8)), ends[:-1] + 1)
        last = ends - 1 - (text[ends - 1] == ord("\r"))
        blank, sound = last < starts, (text[starts] == ord("{")) & (text[last] == ord("}"))
        sound &= ends - starts <= LONGEST
        places, numbers = _matches(block)
        lines = np.searchsorted(ends, places)
        named = np.zeros(len(ends), bool)
        named[lines] = True
        kept = sound[lines]
        self.hashes.append(numbers[kept])
        self.places.append(starts[lines[kept]] + at)
        self.lines += int((~blank).sum())
        self.bad += int((~blank & ~(sound & named)).sum())
        self._add_sketches(at, block, starts, ends, sound & named)

    def _add_sketches(self, at: int, block: bytes, starts: np.ndarray, ends: np.ndarray, sound: np.ndarray) -> None:
        for match in _SKETCHED.finditer(block):
            line = int(np.searchsorted(ends, match.start()))
            if sound[line] and len(self.sketches) < MOST_SKETCHES:
                self.sketches.append(b64decode(match[1])[4:])
                self.sketched.append(int(starts[line]) + at)

    def index(self, cut: bool) -> Index:
        none = np.zeros(0, np.int64)
        hashes, places = np.concatenate([none, *self.hashes]), np.concatenate([none, *self.places])
        order = np.argsort(hashes, kind="stable")
        sketches = np.frombuffer(b"".join(self.sketches), np.int8).reshape(-1, LENGTH)
        return Index(
            hashes=torch.from_numpy(hashes[order]),
            places=torch.from_numpy(places[order]),
            sketches=torch.from_numpy(sketches.copy()),
            sketched=torch.tensor(self.sketched, dtype=torch.int64),
            lines=self.lines,
            bad=self.bad,
            cut=cut,
        )


def _built(file: BinaryIO) -> Index:
    found = _Found()
    for at, block in _blocks(file):
        if found.lines >= MOST_LINES:
            return found.index(cut=True)
        found.add(at, block)
    return found.index(cut=False)


def _blocks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Whole lines, with the place at which they begin; of one that is longer than a block, pieces."""
    at = 0
    while block := file.read(_BLOCK):
        end = block.rfind(b"\n") + 1
        if len(block) == _BLOCK and 0 < end < _BLOCK:
            block = block[:end]
            file.seek(at + end)
        yield at, block
        at += len(block)


def _matches(block: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where hashes are named, and their first digits as numbers."""
    found = [(match.start(), match[1][: _DIGITS + 1]) for match in _HASHED.finditer(block)]
    places = np.array([place for place, _ in found], np.int64)
    digits = bytes.fromhex(b"".join(text for _, text in found).decode())
    return places, (np.frombuffer(digits, ">u8") >> 4).astype(np.int64)
