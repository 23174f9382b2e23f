"""Makes what one picture gives to learn from: its crop, further crops of it, and the mirror image of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .buckets import PictureSize

Box = tuple[float, float, float, float]  # left, top, right, bottom

_ZOOM = (1.03, 1.15)  # how much closer a further crop is
_SHIFT = 0.1  # of the crop's side, how far it may move; beyond the centre crop where the picture goes on


@dataclass(frozen=True)
class View:
    """`pixels` (height, width, 3) in 0..1, fp16. `mask` (height, width) uint8: 255 is learned, 0 is not; None: all."""

    pixels: Tensor
    mask: Tensor | None = None

    def mirrored(self) -> View:
        return View(self.pixels.flip(1), None if self.mask is None else self.mask.flip(1))


@dataclass(frozen=True)
class Crops:
    """Further crops, cut when they are needed: boxes on the part of the picture that they can show."""

    canvas: Tensor  # (height, width, 3) uint8
    mask: Tensor | None  # (height, width) uint8
    boxes: tuple[Box, ...]

    def cut(self, size: PictureSize) -> Iterator[View]:
        for box in self.boxes:
            mask = None if self.mask is None else torch.from_numpy(_cut(self.mask, box, size))
            yield View(as_pixels(_cut(self.canvas, box, size)), mask)


def as_pixels(values: np.ndarray) -> Tensor:
    """uint8 as fp16 in 0..1."""
    return torch.from_numpy(values / np.float32(255)).half()


def further_crops(image: Image.Image, mask: Image.Image | None, size: PictureSize, count: int, seed: int) -> Crops:
    """`count` crops for the bucket `size`, a little closer and a little aside; the same seed gives the same ones."""
    scale = max(size[0] / image.width, size[1] / image.height)
    crop = [side / scale for side in size]
    reach = [_around(whole, part) for whole, part in zip(image.size, crop, strict=True)]
    box = (reach[0][0], reach[1][0], reach[0][1], reach[1][1])
    finest = min(scale * _ZOOM[1], max(scale, 1.0))
    width, height = (max(round((high - low) * finest), 1) for low, high in reach)
    canvas_size = width, height
    canvas = image.resize(canvas_size, Image.Resampling.LANCZOS, box)
    draws = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)).tolist()
    sides = [
        [_side(whole, low_high, part, pixels, draw[0], draw[1 + axis]) for draw in draws]
        for axis, (whole, low_high, part, pixels) in enumerate(zip(image.size, reach, crop, canvas_size, strict=True))
    ]
    boxes = tuple((x[0], y[0], x[1], y[1]) for x, y in zip(*sides, strict=True))
    masked = None if mask is None else _tensor(mask.resize(canvas_size, Image.Resampling.BILINEAR, box))
    return Crops(_tensor(canvas), masked, boxes)


def _around(whole: float, part: float) -> tuple[float, float]:
    """The range along one axis that crops of about `part` can show."""
    low, high = (whole - part) / 2 - _SHIFT * part, (whole + part) / 2 + _SHIFT * part
    return max(low, 0.0), min(high, float(whole))


def _side(
    whole: float, reach: tuple[float, float], part: float, pixels: int, zoom: float, shift: float
) -> tuple[float, float]:
    """One axis of a crop, in pixels of the canvas. `zoom` and `shift` are draws from 0..1."""
    part_seen = part / (_ZOOM[0] + zoom * (_ZOOM[1] - _ZOOM[0]))
    wanted = whole / 2 + (2 * shift - 1) * _SHIFT * part - part_seen / 2
    low = min(max(wanted, reach[0]), reach[1] - part_seen)
    factor = pixels / (reach[1] - reach[0])
    return max((low - reach[0]) * factor, 0.0), min((low + part_seen - reach[0]) * factor, float(pixels))


def _cut(values: Tensor, box: Box, size: PictureSize) -> np.ndarray:
    return np.array(Image.fromarray(values.numpy()).resize(size, Image.Resampling.LANCZOS, box))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))
