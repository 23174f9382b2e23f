"""A preview small enough for a header."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

SIDES = (512, 384, 256)
_QUALITIES = (88, 75, 60, 45)
MOST_BYTES = 96 * 1024  # the header holds it twice, and base64 adds a third


def jpeg(picture: Image.Image) -> bytes:
    """Return the picture as a JPEG of at most 512 px and MOST_BYTES: quality goes down first, then the size."""
    for side in SIDES:
        small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            out = BytesIO()
            small.save(out, "JPEG", quality=quality, optimize=True)
            if out.tell() <= MOST_BYTES:
                break
        else:
            continue
        break
    return out.getvalue()
