"""Tells what a picker shows of a LoRA file: read from its header alone, no tensor is touched."""

from __future__ import annotations

import json
import os
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.decoding import PictureError, content, small
from ..families.signs import guess, named
from ..stored import as_dict, stored
from . import guard
from .faults import UnreadableFileError, UnsafeFileError
from .layers import check_layers
from .thumbnail import SIDES, jpeg
from .words import trigger_words

_MOST_WORDS = 12
_LONGEST = 240
_LARGEST_PICTURE = 32 * 2**20
BESIDE = (".preview.png", ".preview.jpg", ".preview.webp", ".png", ".jpg", ".jpeg", ".webp")


@stored("title words family author license hint picture fault")
@dataclass(frozen=True)
class Card:
    """`family` is a guess from layers and header; `fault` is why the file cannot be used, "" for a sound one."""

    title: str = ""
    words: tuple[str, ...] = ()
    family: str = ""
    author: str = ""
    license: str = ""
    hint: str = ""
    picture: bool = False
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        return as_dict(self)


def read(path: str | os.PathLike[str]) -> Card:
    """Raises UnreadableFileError."""
    try:
        header = guard.inspect(path)
    except UnsafeFileError as error:
        return Card(fault=str(error))
    about = header.metadata
    card = Card(
        title=_short(about.get("modelspec.title", "")),
        words=tuple(_short(word) for word in trigger_words(about)[:_MOST_WORDS]),
        author=_short(about.get("modelspec.author", "")),
        license=_short(about.get("modelspec.license", "")),
        hint=_short(about.get("modelspec.usage_hint", "")),
    )
    try:
        return replace(card, family=_family(header), picture=_has_picture(header))
    except UnsafeFileError as error:
        return replace(card, fault=str(error))


def picture(path: str | os.PathLike[str]) -> bytes | None:
    """A small JPEG: of a picture beside the file, else of the one in its header; None when there is neither, or it
    cannot be read."""
    path = Path(path)
    beside = next((found for end in BESIDE if (found := path.with_suffix(end)).is_file()), None)
    if beside is not None:
        return _jpeg(beside)
    try:
        about = guard.inspect(path).metadata
    except (UnsafeFileError, UnreadableFileError):
        return None
    return next((made for data in _covers(about) if data and (made := _jpeg(data))), None)


def _has_picture(header: guard.Header) -> bool:
    return any(header.path.with_suffix(end).is_file() for end in BESIDE) or any(_covers(header.metadata))


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


def _family(header: guard.Header) -> str:
    shapes = {}
    for name, layer in check_layers(header.path.name, header.tensors).items():
        up, down = (header.tensors.get(layer.keys.get(part, "")) for part in ("up", "down"))
        shapes[name] = (up.shape[0], *down.shape[1:]) if up and down else ()
    families = guess(shapes, header.metadata)
    return named(families) if families else ""


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
