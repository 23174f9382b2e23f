"""Measures pictures: likeness, sharpness, light, and how much of them is left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from .buckets import PictureSize

SIDE = 16  # of the small gray picture that is compared
NEAR = 0.86  # likeness: copies that were recompressed, resized, recoloured or cropped by a tenth are above
_WINDOWS = (1.0, 0.95, 0.9, 0.85)  # parts of a picture, as sides, that may be all of another
_LUMA = (0.299, 0.587, 0.114)


def gray(pixels: Tensor) -> Tensor:
    """(height, width, 3), uint8 or 0..1, as (height, width) fp32 in 0..1."""
    values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    return values @ torch.tensor(_LUMA)


def near_copies(thumbnails: Sequence[Tensor]) -> list[tuple[int, int, bool]]:
    """Pairs (first, second, mirrored) that show the same, by the cosine of the slopes of small gray pictures.

    Also found: one of a pair is the mirror image or a slightly cropped part of the other.
    """
    small = [gray(each) for each in thumbnails]
    whole = _slopes(torch.stack([functional.adaptive_avg_pool2d(each[None], (SIDE, SIDE))[0] for each in small]))
    best: dict[tuple[int, int], tuple[float, bool]] = {}
    for mirrored in (False, True):
        for index, picture in enumerate(small):
            parts = _slopes(_parts(picture.flip(1) if mirrored else picture))
            likeness = (whole @ parts.T).amax(1)
            for other in (likeness >= NEAR).nonzero().flatten().tolist():
                pair = (min(index, other), max(index, other))
                value = float(likeness[other])
                if index != other and value > best.get(pair, (0.0, False))[0]:
                    best[pair] = (value, mirrored)
    return [(first, second, mirrored) for (first, second), (_, mirrored) in sorted(best.items())]


def grouped(pairs: Sequence[tuple[int, int, bool]]) -> list[tuple[list[int], bool]]:
    """`near_copies` as groups: what is joined by pairs, in order, and whether a pair of it is mirrored."""
    groups: list[tuple[set[int], bool]] = []
    for first, second, mirrored in pairs:
        joined, found = {first, second}, mirrored
        apart = []
        for members, flipped in groups:
            if members & joined:
                joined, found = joined | members, found or flipped
            else:
                apart.append((members, flipped))
        groups = [*apart, (joined, found)]
    return sorted((sorted(members), mirrored) for members, mirrored in groups)


def sharpness(pixels: Tensor) -> float:
    """Variance of the Laplacian over the variance of the picture, both of gray; 0 for a flat picture."""
    values = gray(pixels)[None, None]
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    contrast = float(values.var())
    return float(functional.conv2d(values, kernel).var()) / contrast if contrast > 1e-6 else 0.0


def enlarged(found: PictureSize, size: PictureSize) -> float:
    """Return how many times a picture of size `found` was enlarged to fill `size`; below 1: it was made smaller."""
    return max(size[0] / found[0], size[1] / found[1])


def cropped_away(found: PictureSize, size: PictureSize) -> float:
    """The part of a picture's area that its bucket does not show."""
    return 1 - size[0] * size[1] / (found[0] * found[1] * enlarged(found, size) ** 2)


def _parts(values: Tensor) -> Tensor:
    """The picture, and windows of it at five places each way, all shrunk: (windows, SIDE, SIDE)."""
    height, width = values.shape
    shrunk = []
    for part in _WINDOWS:
        rows, columns = max(round(height * part), 1), max(round(width * part), 1)
        spots = product(*({round(step * left / 4) for step in range(5)} for left in (height - rows, width - columns)))
        windows = [values[top : top + rows, left : left + columns] for top, left in spots]
        shrunk.append(functional.adaptive_avg_pool2d(torch.stack(windows), (SIDE, SIDE)))
    return torch.cat(shrunk)


def _slopes(values: Tensor) -> Tensor:
    """Differences of neighbours in (pictures, SIDE, SIDE), as vectors of length 1, (pictures, 2 SIDE (SIDE - 1)): they
    tell layouts apart where the values alone would not."""
    slopes = torch.cat([values.diff(dim=1).flatten(1), values.diff(dim=2).flatten(1)], dim=1)
    return functional.normalize(slopes, dim=1, eps=0.02)
