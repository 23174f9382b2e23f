"""Keeps what the page of pictures and captions asks for again and again: lists of files, looks at pictures, and what
was taken out."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch

from ....lora_core.data import edits
from ....lora_core.data.album import Album
from ....lora_core.data.inspection import NEAR_COPIES, Frames, Look, look
from ....lora_core.data.places import read_only
from .dataset_asked import Question
from .folders import data_roots, dataset_folder

_MOST_ALBUMS = 4
_MOST_LOOKS = 20_000
_MOST_TAKEN = 20_000


class Albums:
    """Lists of files by the folder and how it is read, each as long as no file in it comes or goes."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple, tuple[tuple[int, ...], Album]] = OrderedDict()

    def fresh(self, question: Question) -> Album:
        """Read now. Raises ValueError as the node does."""
        album = Album(dataset_folder(question.folder), question.reading(), data_roots())
        self._known[question.folder, question.reading()] = _stamp(album), album
        while len(self._known) > _MOST_ALBUMS:
            self._known.popitem(last=False)
        return album

    def known(self, question: Question) -> Album:
        """As it was read last, if nothing has come or gone. Raises ValueError as the node does."""
        stamp, album = self._known.get((question.folder, question.reading()), ((), None))
        return album if album is not None and stamp == _stamp(album) else self.fresh(question)


class Looks:
    """Looks at the pictures of one folder, which take long: those of the folder that was asked for last."""

    def __init__(self) -> None:
        self._of: tuple = ()
        self._found: dict[tuple[Path, int, int], Look] = {}

    def at(self, path: Path, frames: Frames, album: Album) -> Look:
        self._turn_to(album, frames)
        key = _key(path)
        if key not in self._found:
            found = look(path, frames, album.reading.masks)
            if len(self._found) >= NEAR_COPIES and found.example:  # whose pictures are not compared
                origin = replace(found.example.origin, thumbnail=torch.empty(0))
                found = replace(found, example=replace(found.example, origin=origin))
            if len(self._found) >= _MOST_LOOKS:
                return found
            self._found[key] = found
        return self._found[key]

    def of(self, album: Album, frames: Frames) -> list[Look]:
        """Those of the pictures that are there now."""
        self._turn_to(album, frames)
        keys = [_key(path) for _, path in album.pictures.values()]
        return [self._found[key] for key in keys if key in self._found]

    def forget(self, path: Path) -> None:
        """Look at a picture anew the next time, as its mask is another."""
        self._found.pop(_key(path), None)

    def _turn_to(self, album: Album, frames: Frames) -> None:
        wanted = (album.folder, album.reading.masks, frames)
        if self._of != wanted:
            self._of, self._found = wanted, {}


class Taken:
    """Holds where pictures were moved that were taken out, by marks that say nothing, so that they can be put back."""

    def __init__(self) -> None:
        self._moves: OrderedDict[str, edits.Moves] = OrderedDict()

    def keep(self, moves: edits.Moves) -> str:
        mark = secrets.token_hex(8)
        self._moves[mark] = moves
        while len(self._moves) > _MOST_TAKEN:
            self._moves.popitem(last=False)
        return mark

    def put_back(self, mark: str) -> None:
        """Raises ValueError, OSError."""
        if mark not in self._moves:
            raise ValueError("it cannot be put back any more, as the server was started anew: move it back by hand")
        moves, roots = self._moves[mark], data_roots()
        for here, there in moves:
            if why := read_only(here.parent, roots) or read_only(there.parent, roots):
                raise ValueError(f"{here.name} is not put back: {why}")
        edits.put_back(moves)
        del self._moves[mark]


def _stamp(album: Album) -> tuple[int, ...]:
    """The times at which entries of its folders came or went."""
    folders = {album.folder, *(found.folder for found, _ in album.pictures.values())}
    try:
        return tuple(folder.stat().st_mtime_ns for folder in sorted(folders))
    except OSError:
        return ()


def _key(path: Path) -> tuple[Path, int, int]:
    try:
        found = path.stat()
    except OSError:
        return path, 0, 0
    return path, found.st_mtime_ns, found.st_size
