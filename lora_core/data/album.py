"""Lists what a page shows of a data set's folder: every picture that the node reads, with its caption as written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import inspection
from .decoding import SUFFIXES
from .folder import FolderContents, look
from .inspection import Marks, Reading
from .pictures import MASK_ENDING
from .places import is_text, read_only
from .text_files import TextError, read_text

MOST = 20_000  # pictures of a folder that are shown
_LONGEST = 2**20  # of a caption file


@dataclass(frozen=True)
class Shown:
    """A picture and its caption. `file` is where that is, "" for none; `was` tells whether the file has changed since:
    "" when there is none beside the picture. `version` tells it of the picture, `mask` of its mask file, "" for none.
    `fault` is why a caption cannot be read, nor written over."""

    name: str
    caption: str
    file: str
    was: str
    version: str
    mask: str
    marks: Marks
    fault: str = ""


class Album:
    """The pictures of a folder by name, those of sets below it as `10_sks dog/01.png`.

    `roots` are the folders below which something may be changed. Raises ValueError as the node does for a folder.
    """

    def __init__(self, folder: Path, reading: Reading, roots: Sequence[Path] = ()) -> None:
        self.folder, self.reading, self.roots = folder, reading, roots
        sets, self.left_out = look(folder, reading.masks)
        self.pictures: dict[str, tuple[FolderContents, Path]] = {
            found.name + path.name: (found, path) for found in sets for path in found.images if is_text(path.name)
        }
        self._files = {found.folder: _listed(found.folder) for found in sets}

    def names(self) -> list[str]:
        return list(self.pictures)[:MOST]

    def shown(self, name: str) -> Shown:
        found, path = self.pictures[name]
        file, text, fault = found.captions.beside(path), "", ""
        try:
            text = read_text(file)[0].strip() if file else ""
        except TextError as error:
            fault = f"{file.name if file else ''} {error}"
        mask = self.mask(name)
        listed = "" if text or fault else found.captions.of(path) or ""
        return Shown(
            name=name,
            caption=text or listed,
            file=file.name if file and not listed else "",
            was=digest(file) if file else "",
            version=_version(path),
            mask=_version(mask) if mask else "",
            marks=inspection.of_caption(path, text or listed, found.words, self.reading),
            fault=fault,
        )

    def mask(self, name: str) -> Path | None:
        """Return the mask file beside a picture."""
        _, path = self.pictures[name]
        names = (path.stem + MASK_ENDING + suffix for suffix in SUFFIXES)
        return next((path.with_name(each) for each in names if each in self._files[path.parent]), None)

    def locked(self, folder: Path) -> str:
        """Why nothing in a folder of its is changed; empty where it may be."""
        return read_only(folder, self.roots)

    def together(self, name: str) -> list[str]:
        """Return the pictures that have their caption in the same file, itself included."""
        found, path = self.pictures[name]
        file = found.captions.beside(path)
        others = found.captions.readers(file) if file else []
        return [found.name + each.name for each in others] or [name]


def digest(file: Path) -> str:
    """Return a hash of a caption file; empty when there is none."""
    try:
        with open(file, "rb") as opened:
            return hashlib.sha256(opened.read(_LONGEST + 1)).hexdigest()[:16]
    except FileNotFoundError:
        return ""
    except OSError:
        return "unreadable"


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _version(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"
