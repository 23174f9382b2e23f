"""A picture in a run's folder, with a note of what it shows: unreadable is as good as not there."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..data.decoding import PictureError, content, decode, texts
from ..drawing.sheet import Box
from ..files.save import write_whole
from ..stored import as_dict, from_dict, stored

log = logging.getLogger("lora_loom")
_NOTE, _PARTS = "lora_loom", "lora_loom.parts"
_HEAD = 2**18  # bytes, in which the texts are
MOST_PARTS = 256
KINDS = ("base", "lora")  # of the pictures of a prompt, in this order


@stored("row prompt kind box")
@dataclass(frozen=True)
class Part:
    """One picture of a sheet: of which prompt, in which row of prompts, whether the `base` model or the `lora` made it,
    and where it is."""

    row: int
    prompt: str
    kind: str
    box: Box


def write(path: Path, picture: Image.Image, note: str, parts: Sequence[Part] = ()) -> None:
    """As PNG, whole or not at all; its folder is made. Raises OSError when the disk does not take it."""
    info, data = PngInfo(), BytesIO()
    info.add_text(_NOTE, note)
    if parts:
        info.add_text(_PARTS, json.dumps([as_dict(part) for part in parts]))
    picture.save(data, "PNG", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data.getvalue())


def read(path: Path, note: str) -> Image.Image | None:
    """Return the picture as RGB; None when there is none under this note."""
    try:
        found = decode(content(path)).image
    except PictureError as error:
        log.debug("%s is not used: it %s", path, error)
        return None
    return found.convert("RGB") if found.info.get(_NOTE) == note else None


def parts_of(path: Path) -> tuple[Part, ...]:
    """Return what can be cut out of a sheet; nothing where it does not tell, as those of version 0.1.0."""
    try:
        with open(path, "rb") as file:
            told = json.loads(texts(file.read(_HEAD)).get(_PARTS, "[]"))
        return tuple(map(_part, told[:MOST_PARTS]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return ()


def _part(told: Any) -> Part:
    """Raises ValueError, TypeError, KeyError or OverflowError for what is none."""
    part = from_dict(Part, {**told, "box": tuple(map(int, told["box"]))})
    left, top, right, bottom = part.box
    if not (0 <= left < right and 0 <= top < bottom and isinstance(part.prompt, str) and type(part.row) is int):
        raise ValueError("it is no part of a picture")
    return part
