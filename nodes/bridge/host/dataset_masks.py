"""Gives pictures to ComfyUI's mask editor, and makes masks of what it has uploaded.

The editor puts four pictures of one time into ComfyUI's input folder. The one with paint and transparency is read, and
all four are removed when the mask is written: nobody else knows of them.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import folder_paths
from PIL import Image

from ....lora_core.data import decoding, painting
from ....lora_core.data.album import Album
from ....lora_core.data.decoding import PictureError
from ....lora_core.data.painting import MaskFile
from ....lora_core.data.places import read_only
from ....lora_core.files.thumbnail import jpeg

_UPLOADED = re.compile(r"clipspace-painted-masked-(\d{1,20}(?: \(\d{1,4}\))?)\.png")
_LAYERS = ("mask", "paint", "painted", "painted-masked")
_PLACES = ("", "clipspace")  # below the input folder, by versions of ComfyUI
_MOST_KEPT = 50
_MOST_BYTES = 2**26


class Painter:
    """Changes masks, and keeps what was there before by marks that say nothing, so that it can be put back."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[MaskFile | None, MaskFile | None]] = OrderedDict()  # (before, after)

    def paint(self, album: Album, name: str, upload: str) -> dict[str, Any]:
        """Make the picture's mask of an upload of the editor's. `share` is how much of the picture is learned; `mark`
        is empty where nothing has changed. Raises ValueError, OSError."""
        path, file = _picture(album, name), _uploaded(upload)
        try:
            mask = painting.painted(decoding.content(file), path)
            before = painting.current(album, name)
        except PictureError as error:
            raise ValueError(f"{path.name} {error}") from error
        after = painting.as_file(mask, path) if mask else None
        if before != after:
            painting.replace(album, name, after)
        _clear(file)
        return {
            "mark": self._keep(before, after) if before != after else "",
            "share": painting.share(mask) if mask else 1.0,
        }

    def back(self, album: Album, name: str, mark: str) -> dict[str, Any]:
        """Undo `paint`, or this; the new `mark` undoes it in turn. Raises ValueError, OSError."""
        path = _picture(album, name)
        if mark not in self._kept:
            raise ValueError("the mask cannot be put back any more, as the server does not have it: paint it again")
        before, after = self._kept[mark]
        if painting.current(album, name) != after:
            raise ValueError(f"the mask of {path.name} was changed meanwhile; it was not put back")
        painting.replace(album, name, before)
        del self._kept[mark]
        return {"mark": self._keep(after, before)}

    def _keep(self, before: MaskFile | None, after: MaskFile | None) -> str:
        mark = secrets.token_hex(8)
        self._kept[mark] = before, after
        while len(self._kept) > _MOST_KEPT or len(self._kept) > 1 and self._bytes() > _MOST_BYTES:
            self._kept.popitem(last=False)
        return mark

    def _bytes(self) -> int:
        return sum(len(each.data) for pair in self._kept.values() for each in pair if each)


def canvas(album: Album, name: str, channel: str) -> tuple[str, bytes]:
    """(type, bytes) of a picture: its colours for `rgb`, for `a` its mask as transparency, else a small one. Raises
    ValueError, OSError."""
    path = _picture(album, name)
    if channel not in ("rgb", "a"):
        return "image/jpeg", jpeg(decoding.small(decoding.content(path), 256, decoding.PICTURE))
    flat, mask = painting.canvas(path, album.reading.masks)
    if channel == "a":
        return "image/png", _saved(painting.as_alpha(mask), "PNG", compress_level=1)
    return "image/jpeg", _saved(flat, "JPEG", quality=92)


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _picture(album: Album, name: str) -> Path:
    if name not in album.pictures:
        raise ValueError("the picture is not in the folder any more")
    return album.pictures[name][1]


def _uploaded(name: str) -> Path:
    """Raises ValueError for what is no file that the editor has put into the input folder."""
    root = Path(folder_paths.get_input_directory())
    found = [root / place / name for place in _PLACES if _UPLOADED.fullmatch(name)]
    for path in found:
        if path.is_file() and not path.is_symlink() and not read_only(path.parent, [root]):
            return path
    raise ValueError("what the mask editor has saved is not in ComfyUI's input folder; open the editor and save again")


def _clear(file: Path) -> None:
    if not (found := _UPLOADED.fullmatch(file.name)):
        return
    for layer in _LAYERS:
        each = file.with_name(f"clipspace-{layer}-{found[1]}.png")
        if each.is_file() and not each.is_symlink():
            each.unlink()
