"""Pictures of a data set: as they were found, and their masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import decoding
from .buckets import PictureSize
from .decoding import SUFFIXES, Decoded, PictureError, flatten, transparent

Masks = Literal["off", "alpha", "-mask files", "auto"]
MASKS = get_args(Masks)
MASK_ENDING = "-mask"
_THUMBNAIL = 128


@dataclass(frozen=True)
class Origin:
    """A picture as it was found: (width, height) upright, and a thumbnail (height, width, 3) uint8 of all of it.

    `quality` is about what a JPEG was saved at, None for other kinds. `reserved` is who may not learn from it, as the
    file says, "" when it says nothing. `content` is the sha256 of its file, of a picture without one that of its
    pixels; "" where nobody asked.
    """

    size: PictureSize
    thumbnail: Tensor
    quality: int | None = None
    reserved: str = ""
    content: str = ""


def mask_file(image: Path) -> Path | None:
    """`x-mask.png` (or another picture suffix) beside `x.jpg`."""
    paths = (image.with_name(image.stem + MASK_ENDING + suffix) for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def read_mask(picture: Image.Image, path: Path | None, masks: Masks) -> Image.Image | None:
    """Return where to learn, as grayscale of the picture's size: white is learned, black is not; None: everywhere.

    From the file beside `path`, or from the picture's own transparency; a file comes first. Raises PictureError for a
    mask that cannot be read, is of another shape than its picture, or leaves nothing to learn.
    """
    file = mask_file(path) if path is not None and masks in ("-mask files", "auto") else None
    if file is not None:
        mask = _from_file(file, picture.size)
    elif masks in ("alpha", "auto") and transparent(picture):
        mask = picture.convert("RGBA").getchannel("A")
    else:
        return None
    low, high = cast(tuple[int, int], mask.getextrema())  # of one channel
    if not high:
        name = file.name if file else "its transparency"
        raise PictureError(
            f"cannot be used: {name} masks out the whole picture; paint the part to learn white, or remove the mask"
        )
    return mask if low < 255 else None


def origin(picture: Decoded, flat: Image.Image, reserved: str = "", content: str = "") -> Origin:
    small = flat.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return Origin(flat.size, torch.from_numpy(np.array(small)), _jpeg_quality(picture.tables), reserved, content)


def _from_file(file: Path, size: PictureSize) -> Image.Image:
    try:
        mask = flatten(decoding.decode(decoding.content(file)).image).convert("L")
    except PictureError as error:
        raise PictureError(f"cannot be used: the mask {file.name} {error}") from error
    if abs(mask.width * size[1] / (mask.height * size[0]) - 1) > 0.02:
        raise PictureError(
            f"cannot be used: the mask {file.name} is {mask.width} x {mask.height} but its picture is "
            f"{size[0]} x {size[1]}; give both the same shape"
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _jpeg_quality(tables: dict[int, list[int]] | None) -> int | None:
    """From the mean of the luminance table: 57.6 is libjpeg's at quality 50, which scales it as below."""
    if not tables:
        return None
    scale = float(np.mean(list(tables[min(tables)]))) / 57.625 * 100
    return round(5000 / scale if scale > 100 else (200 - scale) / 2)
