"""Masks that are painted: what a mask editor is shown of a picture, and the mask file of what it gives back.

In ComfyUI's editor paint makes a picture transparent. Here paint says what is learned, which is white in a mask file.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from . import decoding
from .album import Album
from .buckets import PictureSize
from .decoding import PictureError, flatten
from .edits import check_writable, write
from .pictures import MASK_ENDING, Masks, read_mask

SIDE = 4096  # px of what is painted on: finer than any training
_TURNS = [None, *Image.Transpose]
_SMALL = 24  # px of what is compared, to see whether it was turned


@dataclass(frozen=True)
class MaskFile:
    """A mask file as it is on the disk: its name, and its bytes."""

    name: str
    data: bytes


def canvas(path: Path, masks: Masks) -> tuple[Image.Image, Image.Image]:
    """A picture upright as RGB with sides of at most SIDE, and as grayscale of its size what is painted on it already:
    its mask, or nothing. Raises PictureError."""
    picture = decoding.decode(decoding.content(path)).image
    try:
        mask = read_mask(picture, path, "auto" if masks in ("alpha", "auto") else "-mask files")
    except PictureError:  # which is to be painted over
        mask = None
    flat = flatten(picture)
    flat.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return flat, (mask or Image.new("L", flat.size)).resize(flat.size, Image.Resampling.BILINEAR)


def as_alpha(mask: Image.Image) -> Image.Image:
    """A mask as the transparency that the editor takes for paint: black RGBA of its size."""
    found = Image.new("RGBA", mask.size)
    found.putalpha(ImageChops.invert(mask))
    return found


def painted(data: bytes, path: Path) -> Image.Image | None:
    """Return what was painted on a picture, as grayscale of the picture's size: white is learned. None where nothing or
    all of it was painted, so that all is learned. Raises PictureError for what is not this picture with paint."""
    found, picture = decoding.decode(data).image, flatten(decoding.decode(decoding.content(path)).image)
    if found.mode != "RGBA":
        raise PictureError(f"was saved by the mask editor without transparency ({found.mode}); save it again")
    _check_turn(found.convert("RGB"), picture)
    mask = ImageChops.invert(found.getchannel("A")).resize(picture.size, Image.Resampling.BILINEAR)
    return mask if mask.getextrema() not in ((0, 0), (255, 255)) else None


def share(mask: Image.Image) -> float:
    """How much of a picture is learned, in 0..1; grey counts partly."""
    return float(np.asarray(mask).mean()) / 255


def as_file(mask: Image.Image, path: Path) -> MaskFile:
    """The file that has a picture's mask: `x-mask.png` for `x.jpg`."""
    out = BytesIO()
    mask.save(out, "PNG", optimize=True)
    return MaskFile(f"{path.stem}{MASK_ENDING}.png", out.getvalue())


def current(album: Album, name: str) -> MaskFile | None:
    """The mask file beside a picture. Raises PictureError for one that cannot be read."""
    file = album.mask(name)
    return MaskFile(file.name, decoding.content(file)) if file else None


def replace(album: Album, name: str, mask: MaskFile | None) -> None:
    """Put a mask file beside a picture in the place of the one that is there, whole or not at all, or take that away.
    Raises ValueError when it must not be changed, OSError."""
    _, path = album.pictures[name]
    there, new = album.mask(name), path.with_name(mask.name) if mask else None
    for file in (there, new):
        if file:
            check_writable(album, file)
    if mask and new:
        write(new, mask.data)
    if there and there != new:
        there.unlink()


def _check_turn(found: Image.Image, picture: Image.Image) -> None:
    """Raises PictureError for a picture that was turned or mirrored, of which the editor says nothing."""
    if _other_shape(found.size, picture.size):
        raise PictureError(
            f"is {picture.width} x {picture.height} but was saved by the mask editor as {found.width} x "
            f"{found.height}; open the editor again, and do not turn the picture there"
        )
    wanted = _tiny(picture)
    apart = [np.abs(_tiny(found if turn is None else found.transpose(turn)) - wanted).mean() for turn in _TURNS]
    if min(apart) < 8 and apart[0] > 4 * min(apart) + 8:
        raise PictureError(
            "was turned or mirrored in the mask editor, so that its mask would be, too; open the editor again, and "
            "only paint there"
        )


def _other_shape(one: PictureSize, other: PictureSize) -> bool:
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) > 0.02


def _tiny(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((_SMALL, _SMALL), Image.Resampling.BOX), dtype=np.float32)
