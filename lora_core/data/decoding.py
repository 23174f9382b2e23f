"""Picture files that somebody else made: decoded by a list of formats, after a look at their size, one at a time.

Metadata never decides whether a picture is read: it is turned by its orientation alone, and when anything beside the
pixels stops Pillow, it is decoded again without.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from ..swap import swapped
from .bare import bare, orientation, scans

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")  # none that runs another program, as EPS does
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif",
)  # fmt: skip
NAMES = "PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF"
PREVIEW, PICTURE = 2**24, 160_000_000  # pixels: of what is only looked at, and of what is learned
_LARGEST_FILE = 2**29
_MOST_SCANS = 100  # of a JPEG, each of which is a pass over all of it
_FAULTS = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, SyntaxError, AssertionError,
    RecursionError, EOFError, MemoryError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip  # what Pillow has been seen to raise, or may where warnings are errors
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

_one_at_a_time = threading.Lock()


class PictureError(ValueError):
    """Says why a picture cannot be used, without its name."""


@dataclass(frozen=True)
class Decoded:
    """A picture upright, of 8 bits a channel; the first where a file has `several`.

    `tables` are a JPEG's quantisation tables, None for other kinds.
    """

    image: Image.Image
    several: bool = False
    tables: dict[int, list[int]] | None = None


def content(path: Path) -> bytes:
    """Return the bytes of a picture file. Raises PictureError for one that is empty, too large or cannot be read."""
    try:
        if not path.is_file():
            raise PictureError("is a broken link" if path.is_symlink() else "is not a file")
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise PictureError(
                f"is too large ({size / 2**20:.0f} MiB, at most {_LARGEST_FILE / 2**20:.0f} are allowed); make it "
                "smaller"
            )
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror or error}") from error
    if not data.strip(b"\0"):
        raise PictureError("is empty; copy it again or remove it")
    return data


def check(data: bytes, most: int = PICTURE) -> None:
    """Looks at the header alone. Raises PictureError as `decode`, for what can be told by it."""
    with _one_at_a_time, _tried(data, most):
        pass


def texts(data: bytes) -> dict[str, str]:
    """The texts that stand before the pixels of a picture, of which the beginning is enough. Raises PictureError as
    `decode`."""
    with _one_at_a_time, _tried(data, PICTURE) as image:
        return {name: text for name, text in image.info.items() if isinstance(name, str) and isinstance(text, str)}


def decode(data: bytes, most: int = PICTURE) -> Decoded:
    """Return the first picture of a file. Raises PictureError for what is none, is damaged, or has more pixels than
    `most`."""
    with _one_at_a_time, _tried(data, most, load=True) as image:
        return Decoded(
            _upright(_plain(image), image, data), _several(image), getattr(image, "quantization", None) or None
        )


def small(data: bytes, side: int, most: int = PREVIEW) -> Image.Image:
    """Return the first picture of a file as RGB, made smaller until it fits into a square of `side`. Raises as
    `decode`."""
    with _one_at_a_time, _tried(data, most, load=True, draft=side) as image:
        found, mode = _plain(image), "RGBA" if transparent(image) else "RGB"
        found = found if found.mode == mode else found.convert(mode)
        found.thumbnail((side, side), Image.Resampling.LANCZOS)  # first, so that few copies are of full size
        return flatten(_upright(found, image, data))


def flatten(image: Image.Image) -> Image.Image:
    """RGB with transparency laid on white."""
    if transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def transparent(image: Image.Image) -> bool:
    """Return whether there may be transparent parts: Pillow's `has_transparency_data`, which is not there before
    10.1."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


@contextmanager
def _tried(data: bytes, most: int, load: bool = False, draft: int = 0) -> Iterator[Image.Image]:
    """The picture opened, and loaded if asked; without its metadata when they stop it."""
    try:
        image = _opened(data, most, load, draft)
    except PictureError:
        raise
    except _FAULTS as error:
        image = _again(data, most, load, draft, error)
    try:
        with image:
            yield image
    except PictureError:
        raise
    except _FAULTS as error:
        raise PictureError(_told(error)) from error


def _again(data: bytes, most: int, load: bool, draft: int, error: BaseException) -> Image.Image:
    try:
        if rest := bare(data):
            return _opened(rest, most, load, draft)
    except PictureError:
        raise
    except _FAULTS:
        pass  # what is told is the first fault
    raise PictureError(_told(error)) from error


def _opened(data: bytes, most: int, load: bool, draft: int) -> Image.Image:
    Image.init()
    if (passes := scans(data)) > _MOST_SCANS:
        raise PictureError(f"is a JPEG of {passes} scans, which no camera or program makes; save it again")
    if data[4:8] == b"ftyp" and (kind := "AVIF" if data[8:11] == b"avi" else "HEIF") not in Image.OPEN:
        raise PictureError(f"is {kind}, which this version of Pillow cannot read; save it as JPEG or PNG")
    image = Image.open(BytesIO(data), formats=[each for each in FORMATS if each in Image.OPEN])
    if image.width * image.height > most:
        raise PictureError(
            f"has {image.width} x {image.height} pixels, but at most {most / 1e6:.0f} million are allowed; "
            "make it smaller"
        )
    if draft:
        image.draft(None, (draft, draft))
    if load:
        # other packs switch Pillow to filling up what is missing of a cut file with grey, for all of the process
        with swapped([(ImageFile, "LOAD_TRUNCATED_IMAGES", False)]):
            image.load()
    return image


def _upright(found: Image.Image, image: Image.Image, data: bytes) -> Image.Image:
    """`found`, turned as `image` tells, by the orientation alone: Pillow's `exif_transpose` also writes all of the
    metadata anew, and fails at odd ones. TIFF is turned by Pillow while it is loaded."""
    if image.format == "TIFF":
        return found.copy()
    try:
        turn = image.getexif().get(0x0112)
    except _FAULTS:
        turn = orientation(data)
    method = _TURNS.get(turn) if isinstance(turn, int) else None
    return found.transpose(method) if method is not None else found.copy()


def _plain(image: Image.Image) -> Image.Image:
    """Numbers of more than 8 bits as 8. Raises PictureError where it is not agreed which of them is white."""
    if image.mode in ("LAB", "HSV"):
        raise PictureError(f"is in {image.mode} colours; save it as RGB")
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    tags, values = getattr(image, "tag_v2", {}), np.asarray(image)
    low, high = float(values.min()), float(values.max())
    bits, signed, inverted = tags.get(258, (16,))[0], tags.get(339, (1,))[0] != 1, tags.get(262) == 0
    if image.mode == "F" and 0 <= low and high <= 1:
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode != "F" and bits <= 16 and not signed and 0 <= low and high < 2**bits:
        values = (values >> (bits - 8)).astype(np.uint8)
        return Image.fromarray(255 - values if inverted else values)
    raise PictureError(
        f"has values from {low:.4g} to {high:.4g}, so it is not clear which are black and white; "
        "save it with 8 or 16 bits"
    )


def _several(image: Image.Image) -> bool:
    """Frames or pages; those beside a JPEG are depths or thumbnails."""
    try:
        return image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
    except _FAULTS:
        return True


def _told(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"is not a readable picture: it is not {NAMES}, or it is damaged; save it as one of these"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "has more pixels than Pillow can read; make it smaller"
    if isinstance(error, MemoryError):
        return "does not fit into memory; make it smaller"
    return f"cannot be read ({str(error).rstrip('.') or type(error).__name__}); repair or remove it"
