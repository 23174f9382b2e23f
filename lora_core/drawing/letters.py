"""Letters on pictures, with whatever fonts this Pillow has."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_PLAIN = 10  # px: what Pillow draws with by itself


def pen(image: Image.Image, size: int = _PLAIN) -> ImageDraw.ImageDraw:
    """To draw on a picture, with letters of `size` px."""
    found = ImageDraw.Draw(image)
    found.font = font(size)
    return found


@lru_cache
def font(size: int) -> Font:
    """Pillow's own font, which is of one size before Pillow 10.1, and without FreeType."""
    try:
        found = ImageFont.load_default(size)
    except (TypeError, ImportError):
        found = ImageFont.load_default()
    return found if isinstance(found, ImageFont.FreeTypeFont) else cast(ImageFont.ImageFont, _Bitmap(found))


class _Bitmap:
    """A font that knows Latin-1 alone, and here puts question marks for the rest instead of failing at it."""

    def __init__(self, known: ImageFont.ImageFont):
        self.known = known

    def getmask(self, text: str, mode: str = "", *_: Any, **__: Any) -> Image.core.ImagingCore:
        return self.known.getmask(_latin(text), mode)

    def getmask2(
        self, text: str, mode: str = "", *_: Any, anchor: str | None = None, **__: Any
    ) -> tuple[Image.core.ImagingCore, tuple[int, int]]:
        """The letters, and how far they begin from a place that is to be at `anchor` of them."""
        mask = self.getmask(text, mode)
        across, down = ({"m": 0.5, "r": 1, "s": 1}.get(at, 0) for at in anchor or "la")
        return mask, (-round(across * mask.size[0]), -round(down * mask.size[1]))

    def getbbox(self, text: str, *args: Any, **options: Any) -> tuple[float, float, float, float]:
        return self.known.getbbox(_latin(text), *args, **options)

    def getlength(self, text: str, *args: Any, **options: Any) -> float:
        return self.known.getlength(_latin(text), *args, **options)


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")
