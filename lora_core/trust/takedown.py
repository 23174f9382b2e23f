"""Looks LoRA files up in the takedown lists of a folder: by hash, by those they were made of, and by their sketch.

Every list that a person has put there counts, signed or not; a signature that is there must fit. A person overrules an
entry for themselves by writing its id into `overruled.txt` beside the lists.

Who signed is told by the keys that are known in the folder above it (`keys.py`).
"""

from __future__ import annotations

import contextlib
import logging
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..files.cache import Cache, trim
from ..files.lineage import CONTENT, CONTINUED, parents_of
from ..files.nested import value_of
from . import keys, sketches, takedown_entry, takedown_index
from .signer import Signer, readable
from .sketches import THRESHOLD, Likeness
from .takedown_entry import LONGEST, Entry
from .takedown_index import Index

log = logging.getLogger("lora_loom")

OVERRULED = "overruled.txt"
_INDEX = ".index"
_MOST_LISTS, _MOST_ANCESTORS = 256, 4_096
_MOST_OVERRULED = 2**20  # bytes of the file
_CACHE = 2**29, 90.0  # bytes, days
_HASH = re.compile("[0-9a-f]{64}")
_ID = re.compile(r"\s*([0-9a-f]{12})\b")


class Mark(NamedTuple):
    """A hash by which a list may name a file; `of` is the recorded ancestor that it is of, "" for the file itself."""

    sha256: str
    of: str = ""


@dataclass(frozen=True)
class Hit:
    """`of` as in `Mark`; `likeness` where only the sketch tells. `signed` says by whom."""

    entry: Entry
    source: str
    of: str = ""
    likeness: Likeness | None = None
    overruled: bool = False
    signed: str = "not signed"

    def sentence(self, name: str) -> str:
        """Return reason, issuer and date of a hit on the file of that name, in one sentence."""
        if self.likeness:
            how = (
                f"{name} looks like it is made with a LoRA (similarity {self.likeness.similarity:.2f}, where "
                f"{THRESHOLD:g} is enough, at about {self.likeness.strength:.2g} of its strength) that"
            )
        else:
            how = f"{name} is made of {self.of}, which" if self.of else name
        return f"{how} {self.entry.words()} (takedown list {self.source}, entry {self.entry.id}, {self.signed})"

    def refusal(self, name: str) -> str:
        return (
            f"{self.sentence(name)}; remove it, or if this is a mistake, write {self.entry.id} on a line of "
            f"{OVERRULED} beside the list"
        )

    def described(self) -> dict[str, Any]:
        """For pictures and files that are made all the same."""
        told = {"entry": self.entry.id, "reason": self.entry.reason, "issuer": self.entry.issuer}
        told |= {"date": self.entry.date, "list": self.source}
        alike = {"similarity": round(self.likeness.similarity, 3)} if self.likeness else {}
        return told | ({"of": self.of} if self.of else {}) | alike


@dataclass(frozen=True)
class Verdict:
    """`ignored` are sentences, without the file's name before them, about entries that do not count."""

    hits: tuple[Hit, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def standing(self) -> list[Hit]:
        return [hit for hit in self.hits if not hit.overruled]

    def lines(self, name: str) -> list[str]:
        """Return a line for each entry that is overruled, and for each that does not count."""
        overruled = [f"overruled here: {hit.sentence(name)}" for hit in self.hits if hit.overruled]
        return [*overruled, *(f"{name}: {text}" for text in self.ignored)]

    def overruled(self) -> list[dict[str, Any]]:
        """Return the entries in spite of which something is made, for the picture or file."""
        return [hit.described() for hit in self.hits if hit.overruled]


@dataclass
class _List:
    path: Path
    stamp: tuple[int, int]
    index: Index
    alike: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # by data hash: places, similarities


def marks(data_hash: str, metadata: Mapping[str, str]) -> list[Mark]:
    """Return the hashes of a file and of all that its header says it was made of; "" for an unknown data hash."""
    found = [Mark(text) for text in (data_hash, metadata.get(CONTENT, "")) if _HASH.fullmatch(text)]
    continued = value_of(metadata.get(CONTINUED, "null"))
    left: list[Any] = [*parents_of(metadata), *(continued if isinstance(continued, list) else [continued])]
    while left and len(found) < _MOST_ANCESTORS:
        if isinstance(each := left.pop(0), dict):
            sha256, name, parents = each.get("sha256"), each.get("name"), each.get("parents")
            if isinstance(sha256, str) and _HASH.fullmatch(sha256):
                found.append(Mark(sha256, (isinstance(name, str) and readable(name)) or sha256[:12]))
            left += parents if isinstance(parents, list) else []
    return found


class Takedown:
    """The lists of one folder, `*.jsonl`, which need not exist. Not for several threads at once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lists: dict[Path, _List] = {}
        self._refused: dict[Path, tuple[int, int]] = {}

    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and time of each list, and of what is overruled; () where there is no list."""
        paths = sorted(_files(self.folder))
        beside = [self.folder / OVERRULED] if paths else []
        return tuple((path.name, *stamp) for path in (*paths, *beside) if (stamp := _stamp(path)))

    def look(
        self, found: Iterable[Mark], data_hash: str = "", sketch: Callable[[], Tensor] | None = None,
        today: date | None = None,
    ) -> Verdict:  # fmt: skip
        """Return what the lists say of a file's hashes and, unless they name it, of its sketch, which is asked for when
        a list has any; `data_hash` is what the sketch is known by."""
        lists, today = self._current(), today or date.today()
        if not lists:
            return Verdict()
        hits, ignored = self._split(list(_named(lists, list(found))), today)
        if sketch is not None and not hits and any(len(each.index.sketches) for each in lists):
            alike, more = self._split(list(_alike(lists, data_hash, sketch)), today)
            return Verdict((*hits, *alike), (*ignored, *more))
        return Verdict(tuple(hits), tuple(ignored))

    def _split(self, found: list[Hit], today: date) -> tuple[list[Hit], list[str]]:
        """Hits that count, those overruled marked as such, and what is said of the others."""
        hits, ignored, overruled = {}, [], self._overruled() if found else frozenset()
        for hit in found:
            if fault := hit.entry.fault(today):
                ignored.append(f"ignored: entry {hit.entry.id} of takedown list {hit.source} names it, but {fault}")
            else:
                hit = replace(hit, overruled=hit.entry.id in overruled, signed=self._signed(hit.entry))
                hits.setdefault(hit.entry.id, hit)
        return list(hits.values()), list(dict.fromkeys(ignored))

    def _signed(self, entry: Entry) -> str:
        if not entry.key:
            return "not signed"
        return str(keys.met(Signer(b64decode(entry.key)), keys.known(self.folder.parent)))

    def _overruled(self) -> frozenset[str]:
        try:
            with open(self.folder / OVERRULED, encoding="utf-8-sig", errors="replace") as file:
                lines = file.read(_MOST_OVERRULED).splitlines()
        except OSError:
            return frozenset()
        return frozenset(match[1] for line in lines if (match := _ID.match(line)))

    def _current(self) -> list[_List]:
        """The lists as they are now; what is wrong with one is logged once."""
        found = {path: stamp for path in _files(self.folder) if (stamp := _stamp(path))}
        for path in self._lists.keys() - found.keys():
            del self._lists[path]
        for path, stamp in found.items():
            known = self._lists.get(path)
            if (known is None or known.stamp != stamp) and self._refused.get(path) != stamp:
                self._read(path, stamp)
        return [self._lists[path] for path in sorted(self._lists)]

    def _read(self, path: Path, stamp: tuple[int, int]) -> None:
        self._lists.pop(path, None)
        cache = self.folder / _INDEX
        try:
            index = takedown_index.read(path, Cache(cache))
        except OSError as error:
            self._refused[path] = stamp
            log.warning("the takedown list %s cannot be read: %s", path.name, error.strerror)
            return
        self._lists[path] = _List(path, stamp, index)
        with contextlib.suppress(OSError):
            trim(cache, *_CACHE)
        if index.bad:
            bad, lines = index.bad, index.lines
            log.warning("takedown list %s: %d of %d lines are no entries, and are ignored", path.name, bad, lines)
        if index.cut:
            log.warning("takedown list %s: only its first %d lines are read", path.name, index.lines)


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".jsonl" and path.is_file())[:_MOST_LISTS]
    except OSError:
        return []


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _named(lists: Iterable[_List], found: list[Mark]) -> Iterator[Hit]:
    for each in lists:
        places = {place for mark in found for place in each.index.lines_of(mark.sha256)}
        for entry in _entries(each, places):
            mark = next((mark for mark in found if mark.sha256 in (entry.data, entry.content)), None)
            if mark:
                yield Hit(entry, each.path.name, mark.of)


def _alike(lists: Iterable[_List], data_hash: str, sketch: Callable[[], Tensor]) -> Iterator[Hit]:
    own: Tensor | None = None
    for each in lists:
        if data_hash not in each.alike or not data_hash:
            own = sketch() if own is None else own
            similar = each.index.similarities(own)
            near = (similar >= THRESHOLD).nonzero().flatten().tolist()
            each.alike[data_hash] = [(int(each.index.sketched[row]), float(similar[row])) for row in near]
        if near_places := [place for place, _ in each.alike[data_hash]]:
            own = sketch() if own is None else own
            for entry in _entries(each, near_places):
                likeness = sketches.likeness(own, sketches.from_text(entry.sketch))
                if likeness.similarity >= THRESHOLD:
                    yield Hit(entry, each.path.name, likeness=likeness)


def _entries(each: _List, places: Iterable[int]) -> Iterator[Entry]:
    """The entries at these places; a line that is none is logged, and left out."""
    wanted = sorted(places)
    if not wanted:
        return
    with contextlib.suppress(OSError), open(each.path, "rb") as file:
        for place in wanted:
            file.seek(place)
            try:
                yield takedown_entry.read(file.readline(LONGEST + 2).rstrip(b"\r\n"))
            except ValueError as error:
                log.warning("takedown list %s: the line at byte %d %s, and is ignored", each.path.name, place, error)
