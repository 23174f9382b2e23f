"""A picture in a run's folder, with a note of what it shows: unreadable is as good as not there."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..data.decoding import PictureError, content, decode
from ..files.save import write_whole

log = logging.getLogger("lora_loom")
_NOTE = "lora_loom"


def write(path: Path, picture: Image.Image, note: str) -> None:
    """As PNG, whole or not at all; its folder is made. Raises OSError when the disk does not take it."""
    info, data = PngInfo(), BytesIO()
    info.add_text(_NOTE, note)
    picture.save(data, "PNG", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data.getvalue())


def read(path: Path, note: str) -> Image.Image | None:
    """The picture as RGB; None when there is none under this note."""
    try:
        found = decode(content(path)).image
    except PictureError as error:
        log.debug("%s is not used: it %s", path, error)
        return None
    return found.convert("RGB") if found.info.get(_NOTE) == note else None
