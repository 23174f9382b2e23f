"""Changes what a page shows of a data set's folder: captions, written whole or not at all, and pictures that are taken
out, which are moved and never deleted."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from unicodedata import category

from ..links import is_link
from .album import Album, digest
from .caption_files import ENDINGS
from .folder import TAKEN_OUT

LONGEST = 2**16  # characters of a caption
Moves = list[tuple[Path, Path]]  # (from, to)


class ChangedError(ValueError):
    """Raised when a caption was changed by somebody else since it was read."""


def write_caption(album: Album, name: str, text: str, was: str) -> None:
    """Write the caption of a picture into the file that has it, or a new one. Raises ChangedError when that file is not
    as it `was`, ValueError when it must not be written, OSError."""
    found, path = album.pictures[name]
    file = found.captions.beside(path) or found.captions.fresh(path)
    check_writable(album, file)
    if file.suffix.lower() not in ENDINGS:
        raise ValueError(f"{file.name} is no caption file")
    if fault := album.shown(name).fault:
        raise ValueError(f"{fault}. Repair or remove it first; it was not written over")
    if len(text) > LONGEST:
        raise ValueError(f"the caption has {len(text)} characters; at most {LONGEST} are kept")
    if digest(file) != was:
        raise ChangedError(f"{file.name} was changed meanwhile")
    text = "".join(each for each in text.strip() if each in "\n\t" or category(each) not in ("Cc", "Cs"))
    if text or was:
        write(file, (f"{text}\n" if text else "").encode())


def take_out(album: Album, name: str) -> Moves:
    """Move a picture, its caption and its mask to a folder below. Raises ValueError, OSError."""
    found, path = album.pictures[name]
    if why := album.locked(path.parent):
        raise ValueError(f"{path.name} stays where it is: {why}")
    held = path.parent / TAKEN_OUT
    if os.path.lexists(held) and (is_link(held) or not held.is_dir()):
        raise ValueError(f"{TAKEN_OUT} is not a folder; rename it, then take the picture out again")
    held.mkdir(exist_ok=True)
    moves = _free(held, path.stem, [path, *found.captions.own(path), *_own_mask(album, name)])
    move(moves)
    return moves


def put_back(moves: Moves) -> None:
    """Undo `take_out`, as far as its files are still there. Raises ValueError for a name that is taken and where no
    file is left, OSError."""
    left = [(there, here) for here, there in moves if os.path.lexists(there)]
    if not left:
        raise ValueError(f"it is not in {TAKEN_OUT} any more: there is nothing to put back")
    move(left)


def move(moves: Moves) -> None:
    """Move all files or none. Raises ValueError for a name that is taken, OSError."""
    if taken := next((there for _, there in moves if os.path.lexists(there)), None):
        raise ValueError(f"there is already a file {taken.name}; rename it, then try again")
    done: Moves = []
    try:
        for here, there in moves:
            os.rename(here, there)
            done.append((here, there))
    except OSError:
        for here, there in done:
            os.rename(there, here)
        raise


def check_writable(album: Album, file: Path) -> None:
    """Raises ValueError for a file that is not to be written: outside what may be changed, a link, or no file."""
    if why := album.locked(file.parent):
        raise ValueError(f"{file.name} is not written: {why}")
    if file.is_symlink():
        raise ValueError(f"{file.name} is a link, and links are not followed; replace it with a file of its own")
    if os.path.lexists(file) and not file.is_file():
        raise ValueError(f"{file.name} is not a file; rename it")


def _own_mask(album: Album, name: str) -> list[Path]:
    """The mask beside a picture, unless it is shown as a picture itself."""
    mask = album.mask(name)
    return [mask] if mask and mask not in {path for _, path in album.pictures.values()} else []


def _free(folder: Path, stem: str, files: Sequence[Path]) -> Moves:
    """Return where files with names that begin with the stem go in a folder; with a number where a name is taken."""
    number = 1
    while True:
        begin = stem if number == 1 else f"{stem} ({number})"
        moves = [(file, folder / (begin + file.name[len(stem) :])) for file in files]
        if not any(os.path.lexists(there) for _, there in moves):
            return moves
        number += 1


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # hidden: it is never listed
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
