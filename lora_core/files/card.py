"""Tells what a picker shows of a LoRA file: read from its header, no tensor is touched, and from side files of other
programs. Where both say something the header wins."""

from __future__ import annotations

import json
import os
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.decoding import PictureError, content, small
from ..families.signs import SIGNS, guess, named, takes
from ..stored import as_dict, stored
from . import guard, side_files
from .faults import UnreadableFileError, UnsafeFileError
from .layers import check_layers
from .side_files import LONGEST_NOTES, MOST_WORDS, short
from .thumbnail import SIDES, jpeg
from .words import listed, named_words, suggested_words, unique

_LARGEST_PICTURE = 32 * 2**20


@stored(
    "title words family author license hint picture fault fits base notes tags strength permissions favourite source"
)
@dataclass(frozen=True)
class Card:
    """`family` is a guess from layers and header, and `fits` the families whose models take the file; `fault` is why
    the file cannot be used, "" for a sound one. `source` has the fields that a side file says, each with its program.
    """

    title: str = ""
    words: tuple[str, ...] = ()
    family: str = ""
    author: str = ""
    license: str = ""
    hint: str = ""
    picture: bool = False
    fault: str = ""
    fits: tuple[str, ...] = ()
    base: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    strength: str = ""
    permissions: str = ""
    favourite: bool = False
    source: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return as_dict(self)


def read(path: str | os.PathLike[str]) -> Card:
    """Raises UnreadableFileError."""
    try:
        header = guard.inspect(path)
    except UnsafeFileError as error:
        return Card(fault=str(error))
    beside = side_files.told(path)
    card = _completed(_said(header.metadata), beside)
    card = replace(card, words=card.words or _few(suggested_words(header.metadata)))
    try:
        families = guess(_shapes(header), header.metadata)
        return replace(
            card,
            family=named(families) if families else "",
            fits=tuple(family for family in SIGNS if families and takes(family, families)),
            picture=_has_picture(header, beside.preview),
        )
    except UnsafeFileError as error:
        return replace(card, fault=str(error))


def _said(about: Mapping[str, str]) -> Card:
    """Return what a header says, taken by itself."""
    return Card(
        title=short(about.get("modelspec.title", "")),
        words=_few(named_words(about)),
        author=short(about.get("modelspec.author", "")),
        license=short(about.get("modelspec.license", "")),
        hint=short(about.get("modelspec.usage_hint", "")),
        notes=short(about.get("modelspec.description", ""), LONGEST_NOTES),
        tags=_few(unique(listed(about.get("modelspec.tags", "")))),
    )


def _few(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(short, words[:MOST_WORDS]))


def _completed(card: Card, beside: side_files.Told) -> Card:
    """The card with what it does not say yet."""
    names = [name for name in beside.values if name not in ("preview", "answers") and not getattr(card, name)]
    return replace(
        card, **{name: beside.values[name] for name in names}, source={name: beside.source[name] for name in names}
    )


def picture(path: str | os.PathLike[str]) -> bytes | None:
    """Return a small JPEG: of a picture beside the file, else of the one in its header; None when there is neither, or
    it cannot be read."""
    path = Path(path)
    beside = _beside(path) or _beside(path, side_files.told(path).preview)
    if beside is not None:
        return _jpeg(beside)
    try:
        about = guard.inspect(path).metadata
    except (UnsafeFileError, UnreadableFileError):
        return None
    return next((made for data in _covers(about) if data and (made := _jpeg(data))), None)


def _beside(path: Path, preview: str | None = None) -> Path | None:
    """The picture of that name in the file's folder, or the first of those that go by the file's own."""
    names = [path.with_suffix(end).name for end in side_files.PICTURES] if preview is None else [preview]
    return next((found for name in names if name and (found := path.with_name(name)).is_file()), None)


def _has_picture(header: guard.Header, preview: str) -> bool:
    return bool(_beside(header.path) or _beside(header.path, preview)) or any(_covers(header.metadata))


def _covers(metadata: Mapping[str, str]) -> Iterator[bytes]:
    """Bytes of the pictures in a header: ModelSpec's data URL, then the cover images that A1111 shows."""
    yield _decoded(metadata.get("modelspec.thumbnail", "").partition("base64,")[2])
    try:
        covers = json.loads(metadata.get("ssmd_cover_images", "[]"))
    except (ValueError, RecursionError):
        covers = []
    if isinstance(covers, list) and covers and isinstance(covers[0], str):
        yield _decoded(covers[0])


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def _jpeg(source: Path | bytes) -> bytes | None:
    """Drawn anew, so that nothing but a picture leaves this place."""
    try:
        if isinstance(source, Path) and source.stat().st_size > _LARGEST_PICTURE:
            return None
        return jpeg(small(content(source) if isinstance(source, Path) else source, SIDES[0]))
    except (OSError, PictureError):
        return None


def _shapes(header: guard.Header) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, layer in check_layers(header.path.name, header.tensors).items():
        up, down = (header.tensors.get(layer.keys.get(part, "")) for part in ("up", "down"))
        shapes[name] = (up.shape[0], *down.shape[1:]) if up and down else ()
    return shapes
