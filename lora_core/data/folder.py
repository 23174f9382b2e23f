"""Finds what is in a folder of pictures: which of its files are learned from, and why each of the others is not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .caption_files import CaptionFiles
from .decoding import SUFFIXES
from .pictures import MASK_ENDING, Masks
from .references import FOLDERS, ReferenceFiles
from .references import look as look_for_references

_NAMED = re.compile(r"(\d{1,4})_(.*\S.*)")  # as sd-scripts names folders: repeats and class words
TAKEN_OUT = "_removed"  # a folder below, for pictures that are not used any more
_SYSTEM = ("thumbs.db", "desktop.ini")
_MOST_BELOW = 10_000  # entries that are looked at below a folder
Reasons = list[tuple[str, str]]  # (name, why)


@dataclass(frozen=True)
class FolderContents:
    """One set: the pictures of a folder. `repeats` and `words` are those of a name such as `10_sks dog`, and `name` is
    put before its files' names where there are several sets."""

    folder: Path
    images: list[Path]
    captions: CaptionFiles
    others: Reasons
    repeats: int = 1
    words: str = ""
    name: str = ""
    references: ReferenceFiles = ReferenceFiles()

    def left_out(self) -> Reasons:
        """Return every entry that was not used; to be asked for when all captions have been."""
        files = [path for path in self.captions.files if path not in self.captions.used]
        found = [*self.others, *self.references.unused(self.images)]
        found += [(path.name, self.captions.why(path) or _reason(path)) for path in files]
        return [(self.name + name, why) for name, why in sorted(found)]


@dataclass
class _Entries:
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    others: Reasons = field(default_factory=list)


def look(folder: Path, masks: Masks = "off", references: bool = True) -> tuple[list[FolderContents], Reasons]:
    """Return the sets of a folder, and what else is in it: one set, or one for each folder named as `10_sks dog` where
    it holds no pictures itself. Raises ValueError when there are none.

    Where `masks` reads files, `x-mask.png` beside `x.jpg` is neither a picture nor left out; nor are `references`
    (`references.look`).
    """
    entries = _entries(folder)
    found = _one(folder, entries, masks, references)
    if found.images:
        return [found], [(f"{path.name}/", _below(path)) for path in _others(found, entries)]
    sets = [each for path in entries.folders for each in _named(path, masks, references)]
    if not sets:
        raise ValueError(_no_pictures(folder, entries))
    rest = [path for path in entries.folders if path not in {each.folder for each in sets}]
    return sets, [*found.left_out(), *((f"{path.name}/", _below(path)) for path in rest)]


def named(folder: Path) -> tuple[int, str] | None:
    """Repeats and class words of a folder that is named as `10_sks dog`."""
    found = _NAMED.fullmatch(folder.name)
    return (max(int(found[1]), 1), " ".join(found[2].replace("_", " ").split())) if found else None


def files(folder: Path) -> list[Path]:
    """All that `look` may read below a folder, for telling whether it must be read again."""
    try:
        here = sorted(folder.iterdir())
        sets = [path for each in here if named(each) and each.is_dir() for path in sorted(each.iterdir())]
        held = [each for each in (*here, *sets) if each.name in FOLDERS and each.is_dir()]
        return [*here, *sets, *(path for each in held for path in sorted(each.iterdir()))]
    except OSError:
        return []


def _entries(folder: Path) -> _Entries:
    found = _Entries()
    try:
        if not folder.is_dir():
            raise ValueError(
                f"the folder {folder} does not exist; write an absolute path, or a folder inside ComfyUI's input folder"
            )
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                found.folders.append(path)
            elif why := _odd(path):
                found.others.append((path.name, why))
            else:
                found.files.append(path)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be read: {error.strerror or error}") from error
    return found


def _odd(path: Path) -> str:
    if path.name.startswith(".") or path.name.lower() in _SYSTEM:
        return "hidden file or system file"
    if path.is_file():
        return ""
    return "a broken link" if path.is_symlink() else "not a regular file"


def _one(folder: Path, entries: _Entries, masks: Masks, references: bool, **of_name: Any) -> FolderContents:
    images = [path for path in entries.files if path.suffix.lower() in SUFFIXES]
    beside: set[Path] = set()
    if masks in ("-mask files", "auto"):
        stems = {path.stem + MASK_ENDING for path in images}
        beside = {path for path in images if path.stem in stems}
        images = [path for path in images if path not in beside]
    told = ReferenceFiles()
    if references:
        told, used = look_for_references(images, entries.files, entries.folders)
        beside, images = beside | used, [path for path in images if path not in used]
    taken = beside.union(images)
    rest = [path for path in entries.files if path not in taken]
    return FolderContents(folder, images, CaptionFiles(rest, images), entries.others, **of_name, references=told)


def _others(found: FolderContents, entries: _Entries) -> list[Path]:
    """Folders below that hold no references."""
    held = {name for name, _ in found.references.folders}
    return [path for path in entries.folders if path.name not in held]


def _named(folder: Path, masks: Masks, references: bool) -> Iterator[FolderContents]:
    if of_name := named(folder):
        entries = _entries(folder)
        name, (repeats, words) = f"{folder.name}/", of_name
        found = _one(folder, entries, masks, references, repeats=repeats, words=words, name=name)
        if found.images:
            found.others.extend((f"{path.name}/", _below(path)) for path in _others(found, entries))
            yield found


def _below(folder: Path) -> str:
    count = _count(folder)
    if not count:
        return "a folder without pictures"
    if folder.name == TAKEN_OUT:
        return f"{count} pictures that were taken out"
    return f"a subfolder with {count} pictures: use another LoRA Dataset for it and combine them"


def _count(folder: Path) -> int:
    """Pictures in a folder and below it; links are not followed."""
    below = (name for _, _, names in os.walk(folder) for name in names)
    return sum(Path(name).suffix.lower() in SUFFIXES for name in islice(below, _MOST_BELOW))


def _no_pictures(folder: Path, entries: _Entries) -> str:
    found = {path.name: count for path in entries.folders if (count := _count(path))}
    if found:
        below = ", ".join(f"{name} ({count})" for name, count in islice(found.items(), 12))
        return (
            f"the folder {folder} contains no pictures, only its subfolders do: {below}; choose one of them, rename "
            "them to 10_class (repeats and class words), or use one LoRA Dataset for each and combine them"
        )
    return f"the folder {folder} contains no pictures; put {', '.join(SUFFIXES)} files with .txt captions into it"


def _reason(path: Path) -> str:
    if path.suffix.lower() == ".npz":
        return "cache file of another trainer"
    return f"not one of {', '.join(SUFFIXES)}"
