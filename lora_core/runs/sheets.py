"""Pictures cut out of sheets of previews, drawn small: all of a sheet at once, as who asks for one asks for all."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..data.decoding import PictureError, content, decode
from ..drawing.sheet import Box
from . import kept_picture

log = logging.getLogger("lora_loom")
_MOST = 2**26  # bytes that are remembered
_SMALLEST, _LARGEST = 16, 2048  # pixels
Tagged = tuple[str, bytes]  # a tag that changes with the picture, and the picture; b"" for who has it under that tag


class Sheets:
    """JPEGs of what sheets show, by sheet and size; those that were asked for last are remembered. Not for several
    threads at once."""

    def __init__(self) -> None:
        self._drawn: OrderedDict[tuple[Path, str, int], list[bytes]] = OrderedDict()

    def picture(self, path: Path, number: int, side: int, known: Collection[str] = ()) -> Tagged | None:
        """Part `number` of a sheet, at most `side` pixels wide and high. A sheet that does not tell its parts has one.
        None when there is no such picture."""
        side = min(max(side, _SMALLEST), _LARGEST)
        if (version := _version(path)) is None:
            return None
        if (tag := f"{version}-{number}-{side}") in known:
            return tag, b""
        key = path, version, side
        pictures = self._drawn.pop(key, None) or _pictures(path, side)
        self._drawn[key] = pictures
        while len(self._drawn) > 1 and sum(map(len, sum(self._drawn.values(), []))) > _MOST:
            self._drawn.popitem(last=False)
        return (tag, pictures[number]) if number < len(pictures) else None


def drawn(picture: Image.Image, side: int, kind: str) -> bytes:
    """Drawn anew, so that nothing but a picture is in it."""
    plain, out = Image.new("RGB", picture.size), BytesIO()
    plain.paste(picture)
    plain.thumbnail((side, side), Image.Resampling.LANCZOS)
    plain.save(out, kind, quality=90)
    return out.getvalue()


def whole(path: Path, known: Collection[str] = ()) -> Tagged | None:
    """A PNG of another picture in a run's folder; None for one that cannot be read."""
    if (tag := _version(path)) is None:
        return None
    if tag in known:
        return tag, b""
    found = _decoded(path)
    return (tag, drawn(found, _LARGEST, "PNG")) if found else None


def _version(path: Path) -> str | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"


def _pictures(path: Path, side: int) -> list[bytes]:
    if (found := _decoded(path)) is None:
        return []
    boxes = [_inside(part.box, found) for part in kept_picture.parts_of(path)]
    if not boxes or sum(map(_area, boxes)) > 2 * found.width * found.height:  # ours do not overlap
        boxes = [(0, 0, *found.size)]
    return [drawn(found.crop(box), side, "JPEG") for box in boxes]


def _area(box: Box) -> int:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)


def _inside(box: Box, whole: Image.Image) -> Box:
    left, top, right, bottom = box
    return min(left, whole.width - 1), min(top, whole.height - 1), min(right, whole.width), min(bottom, whole.height)


def _decoded(path: Path) -> Image.Image | None:
    try:
        return decode(content(path)).image.convert("RGB")
    except PictureError as error:
        log.debug("%s is not shown: it %s", path, error)
        return None
