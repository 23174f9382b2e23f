"""Tells where the captions of a folder's pictures are: beside each of them, or listed in one file."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from .text_files import TextError, read_text

ENDINGS = (".txt", ".caption")  # after the picture's name, with its suffix or without
LISTS = (".jsonl", ".json", ".csv")
_LARGEST_LIST = 2**26
_NAMES = ("file_name", "image_path", "image", "file", "filename", "file_path", "path", "img", "image_file", "img_path")
_OWN_TEXTS = ("caption", "text")  # of a file for one picture, where other words may be about anything
_TEXTS = ("caption", "text", "prompt", "captions", "description")
_Entries = dict[str, str]  # captions by the name of a picture


class CaptionFiles:
    """The captions of `images`, which are among the `files` of one folder.

    `used` are the files that gave some, `notes` what is to be known of a file, by name.
    """

    def __init__(self, files: Sequence[Path], images: Sequence[Path]):
        self.files, self.images = files, images
        self.used: set[Path] = set()
        self.notes: list[tuple[str, str]] = []
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            self._by_name[path.name.casefold()].append(path)
        self._own = {name for image in images for name in _beside(image)}
        self._listed: _Entries | None = None

    def of(self, image: Path) -> str | None:
        """Return the caption of a picture: of a file beside it, else of a list; None when there is none."""
        for path in self._candidates(image):
            if text := self._read(path):
                return text
        if self._listed is None:
            self._listed = {}
            for found in self._lists():
                self._listed = found | self._listed
        return self._listed.get(image.name)

    def beside(self, image: Path) -> Path | None:
        """The file beside a picture that gives its caption, else one that would if it was not empty."""
        found = self._candidates(image)
        return next((path for path in found if self._read(path)), next(iter(found), None))

    def fresh(self, image: Path) -> Path:
        """Return where a first caption of a picture goes: where no other picture would read it, too."""
        names = [image.stem + ENDINGS[0], image.name + ENDINGS[0]]
        own = [name for name in names if self._claims[name.casefold()] < 2]
        return image.with_name((own or names)[0])

    def readers(self, path: Path) -> list[Path]:
        """Return the pictures that would read a file beside them."""
        return self._readers.get(path, [])

    def own(self, image: Path) -> list[Path]:
        """Return the files beside a picture that are about no other."""
        return [path for path in self._candidates(image) if self._readers[path] == [image]]

    def any(self) -> bool:
        return any(self.of(image) for image in self.images)

    def why(self, path: Path) -> str:
        """Return why a file that looks like captions was not used; empty for other files."""
        suffix = path.suffix.lower()
        if suffix in ENDINGS:
            owners = self.readers(path)
            return f"{owners[0].name} has its caption in another file" if owners else "caption without a picture"
        if suffix in LISTS and self._listed is None:
            return "not needed: every picture has its own caption file"
        if suffix in LISTS:
            return "contains no caption for a picture in this folder"
        return ""

    @cached_property
    def _readers(self) -> dict[Path, list[Path]]:
        found: dict[Path, list[Path]] = defaultdict(list)
        for image in self.images:
            for path in self._candidates(image):
                found[path].append(image)
        return dict(found)

    @cached_property
    def _claims(self) -> Counter[str]:
        """Return how many pictures would read a file of that name."""
        return Counter(name.casefold() for image in self.images for name in set(_beside(image)))

    def _candidates(self, image: Path) -> list[Path]:
        """Files beside it, those of its own spelling first; none that is in the spelling of another picture."""
        found = []
        for name in _beside(image):
            same = self._by_name[name.casefold()]
            found += sorted(
                (path for path in same if path.name == name or path.name not in self._own),
                key=lambda path: path.name != name,
            )
        return found

    def _read(self, path: Path) -> str | None:
        """The text in one line. What cannot be read counts as used: it is told in the notes."""
        first = path not in self.used
        self.used.add(path)
        try:
            text, note = read_text(path)
        except TextError as error:
            text, note = "", f"{error}: not read"
        if note and first:
            self.notes.append((path.name, note))
        return " ".join(text.split())

    def _lists(self) -> Iterator[_Entries]:
        """Captions by picture, of one list after the other, metadata.* first."""
        lists = [path for path in self.files if path.suffix.lower() in LISTS]
        for path in sorted(lists, key=lambda path: (path.stem.lower() != "metadata", path)):
            try:
                text, note = read_text(path, _LARGEST_LIST)
                found = dict(_matched(_entries(path, text), self.images))
            except TextError as error:
                found, note = {}, f"{error}: not read"
            except (ValueError, RecursionError, csv.Error) as error:
                found, note = {}, f"is not valid {path.suffix[1:].upper()} ({error}): not read; repair it"
            if found or note:
                self.used.add(path)
            self.notes += [(path.name, note)] if note else []
            yield found


def _beside(image: Path) -> Iterator[str]:
    for ending in ENDINGS:
        yield image.stem + ending
        yield image.name + ending


def _entries(path: Path, text: str) -> Iterable[tuple[str, str]]:
    """(name of a picture, caption), in the forms that trainers write: a list or lines of records, or an object by
    name. Raises ValueError."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _records([_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()])
    if suffix == ".csv":
        return _records(list(csv.DictReader(StringIO(text))))
    found = json.loads(text)
    if isinstance(found, list):
        return _records(found)
    if not isinstance(found, dict):
        return []
    own = _text({key: found.get(key) for key in _OWN_TEXTS})
    if own and not any(key in found for key in _NAMES):
        return [(path.stem, own)]  # of one picture, beside it
    within = [each for value in found.values() if isinstance(value, list) for each in _records(value)]
    return [*within, *((name, _text(value)) for name, value in found.items())]  # {"images": [...]}, or by name


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _records(found: list[Any]) -> Iterator[tuple[str, str]]:
    for each in found:
        if isinstance(each, dict):
            name = next((each[key] for key in _NAMES if isinstance(each.get(key), str)), "")
            yield name, _text(each)


def _text(value: Any) -> str:
    """The caption of a record; sd-scripts' tags follow it. Of several captions the first."""
    if isinstance(value, dict):
        found = next((text for key in _TEXTS if (text := _text(value.get(key)))), "")
        tags = value.get("tags")
        tags = ", ".join(each for each in tags if isinstance(each, str)) if isinstance(tags, list) else _text(tags)
        return ", ".join(filter(None, (found, tags)))
    if isinstance(value, list):
        return next((text for each in value if (text := _text(each))), "")
    return " ".join(value.split()) if isinstance(value, str) else ""


def _matched(entries: Iterable[tuple[str, str]], images: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Captions by the names that pictures have here; a full name goes before one without its suffix."""
    names = {image.name for image in images}
    stems = {image.stem: image.name for image in images}
    whole, short = {}, {}
    for name, text in entries:
        last = PurePosixPath(name.replace("\\", "/")).name
        if text and last in names:
            whole.setdefault(last, text)
        elif text and (last in stems or PurePosixPath(last).stem in stems):
            short.setdefault(stems.get(last) or stems[PurePosixPath(last).stem], text)
    yield from (short | whole).items()
