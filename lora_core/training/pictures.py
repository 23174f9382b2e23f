"""Picture files: which they are, opened with their name on every error, upright and flat, and their masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .buckets import Size

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Masks = Literal["off", "alpha", "-mask files", "auto"]
MASKS = get_args(Masks)
MASK_ENDING = "-mask"
_THUMBNAIL = 128


@dataclass(frozen=True)
class Origin:
    """A picture as it was found: (width, height) upright, and a thumbnail (height, width, 3) uint8 of all of it.

    `quality` is about what a JPEG was saved at, None for other kinds.
    """

    size: Size
    thumbnail: Tensor
    quality: int | None = None


def list_images(folder: Path, masks: Masks = "off") -> tuple[list[Path], list[tuple[str, str]]]:
    """Pictures of the folder by name, and (name, reason) for the other files. Raises ValueError when there are none.

    Where `masks` reads files, `x-mask.png` beside `x.jpg` is neither.
    """
    if not folder.is_dir():
        raise ValueError(
            f"the folder {folder} does not exist; give an absolute path or one inside ComfyUI's input folder"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if masks in ("-mask files", "auto"):
        stems = {path.stem + MASK_ENDING for path in images}
        beside = {path for path in images if path.stem in stems}
        images, files = [p for p in images if p not in beside], [p for p in files if p not in beside]
    if not images:
        raise ValueError(
            f"the folder {folder} holds no images; put {', '.join(SUFFIXES)} files with .txt captions into it"
        )
    captions = {path.with_suffix(".txt").name for path in images}
    others = [path.name for path in files if path not in images and path.name not in captions]
    return images, [(name, _reason(name)) for name in others]


def mask_file(image: Path) -> Path | None:
    """`x-mask.png` (or another picture suffix) beside `x.jpg`."""
    paths = (image.with_name(image.stem + MASK_ENDING + suffix) for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture, not decoded yet: a file that turns out broken while it is decoded inside is named, too."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {path.name}: {error}; repair or remove it") from error


def flatten(image: Image.Image) -> Image.Image:
    """Upright (EXIF) RGB with transparency laid on white."""
    image = _upright(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(image: Image.Image, path: Path | None, masks: Masks) -> Image.Image | None:
    """Where to learn, as upright grayscale of the picture's size: white is learned, black is not; None: everywhere.

    From the file beside `path`, or from the picture's own transparency; a file comes first. Raises ValueError for a
    mask of another shape than its picture, or that leaves nothing to learn.
    """
    upright = ImageOps.exif_transpose(image)
    file = mask_file(path) if path is not None and masks in ("-mask files", "auto") else None
    if file is not None:
        with opened(file) as found:
            mask = _from_file(flatten(found).convert("L"), upright.size, file.name)
    elif masks in ("alpha", "auto") and upright.has_transparency_data:
        mask = upright.convert("RGBA").getchannel("A")
    else:
        return None
    low, high = mask.getextrema()
    if not high:
        name = file.name if file else "the transparency" + (f" of {path.name}" if path else "")
        raise ValueError(f"{name} masks out the whole picture; paint white what is to be learned, or remove it")
    return mask if low < 255 else None


def origin(image: Image.Image, flat: Image.Image) -> Origin:
    small = flat.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return Origin(flat.size, torch.from_numpy(np.array(small)), _jpeg_quality(image))


def _from_file(mask: Image.Image, size: Size, name: str) -> Image.Image:
    if abs(mask.width * size[1] / (mask.height * size[0]) - 1) > 0.02:
        raise ValueError(
            f"the mask {name} is {mask.width} x {mask.height} but its picture is {size[0]} x {size[1]}; "
            "make both of the same shape"
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _jpeg_quality(image: Image.Image) -> int | None:
    """From the mean of the luminance table: 57.6 is libjpeg's at quality 50, which scales it as below."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    scale = float(np.mean(list(tables[min(tables)]))) / 57.625 * 100
    return round(5000 / scale if scale > 100 else (200 - scale) / 2)


def _upright(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grayscale, of which Pillow would keep what is below 256
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _reason(name: str) -> str:
    return "caption without an image" if name.lower().endswith(".txt") else f"not one of {', '.join(SUFFIXES)}"
