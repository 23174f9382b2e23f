"""Finds folders that hold pictures, for a list to choose from, and tells which of them may be written to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .decoding import SUFFIXES
from .folder import TAKEN_OUT, named
from .references import FOLDERS

_MOST = 20_000  # entries that are looked at
_DEEPEST = 4
_SKIPPED = ("clipspace", TAKEN_OUT)  # the first is of ComfyUI's mask editor


@dataclass(frozen=True)
class Place:
    """A folder by its name below a root, with forward slashes, and how many pictures lie in it."""

    name: str
    pictures: int


def places(roots: Iterable[Path]) -> tuple[list[Place], bool]:
    """Folders with pictures below any of the roots, and whether all were looked at. Links are not followed; where two
    roots have a folder of one name, that of the first counts. Folders of references beside pictures are left out."""
    found: dict[str, Place] = {}
    left = [_MOST]
    for root in roots:
        for place in _with_sets(list(_below(root, "", 0, left))):
            found.setdefault(place.name, place)
    held = sorted((each for each in found.values() if each.pictures), key=lambda each: each.name.casefold())
    return held, left[0] > 0


def _with_sets(found: list[Place]) -> Iterator[Place]:
    """Folders without pictures of their own have those of the sets in them, as `10_sks dog`."""
    sets: Counter[str] = Counter()
    for each in found:
        above, _, last = each.name.rpartition("/")
        sets[above] += each.pictures if above and named(Path(last)) else 0
    yield from (Place(each.name, each.pictures or sets[each.name]) for each in found)


def read_only(folder: Path, roots: Sequence[Path]) -> str:
    """Return why nothing in a folder is changed; empty where it may be: below one of the roots, and not behind a
    link."""
    written = Path(os.path.abspath(folder))
    root = next((each for each in map(Path, map(os.path.abspath, roots)) if written.is_relative_to(each)), None)
    if root is None:
        return "it is outside ComfyUI's input and datasets folders"
    if _same(os.path.realpath(folder), os.path.join(os.path.realpath(root), written.relative_to(root))):
        return ""
    return "it is reached through a link"


def _same(one: str, other: str) -> bool:
    return os.path.normcase(os.path.normpath(one)) == os.path.normcase(os.path.normpath(other))


def _below(folder: Path, name: str, depth: int, left: list[int]) -> Iterator[Place]:
    pictures, folders = 0, []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                left[0] -= 1
                if left[0] <= 0:
                    break
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif not entry.name.startswith(".") and Path(entry.name).suffix.lower() in SUFFIXES:
                    pictures += 1
    except OSError:
        return
    if name:
        yield Place(name, pictures)
    skipped = (*_SKIPPED, *FOLDERS) if pictures else _SKIPPED
    wanted = sorted(each for each in folders if not each.startswith(".") and each not in skipped and is_text(each))
    for each in wanted if depth < _DEEPEST else ():
        yield from _below(folder / each, f"{name}/{each}" if name else each, depth + 1, left)


def is_text(name: str) -> bool:
    """Return whether a name can be sent and comes back as it was: not one of bytes that are no UTF-8."""
    return all(not "\ud800" <= each <= "\udfff" for each in name)
