"""Judges what a picture drawn for a scene is worth, from its pixels alone.

Every pixel is given to the layer of the true picture whose colour is nearest in CIE Lab. Where the shape is and how
large is the sampler's to choose, so the true shape is tried at every whole-pixel shift and eleven sizes, and the true
picture is then drawn where it overlaps best; patterns stay on their own grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from benchmarks._concepts import SHAPE, Concept, Layers, away
from demo.shapes import Scene
from torch import Tensor
from torch.nn import functional as F

_SIZES = [0.5 + 0.025 * i for i in range(11)]


@dataclass(frozen=True)
class Verdict:
    """`overlap` of the concept's pixels with the true ones, intersection over union, 0..1; `colour`, the distance of
    their mean colour from the true one in CIE Lab (1976); `error`, the mean difference to the true picture, 0..255."""

    overlap: float
    colour: float
    error: float


def judge(image: Tensor, scene: Scene, concept: Concept) -> Verdict:
    """Judge a picture [3, h, w], values 0..1."""
    labels = segment(image, concept.layers(scene, image.shape[-1]))
    truth = concept.layers(place(labels >= SHAPE, scene), image.shape[-1])
    drawn, wanted = labels == truth.concept, truth.labels() == truth.concept
    return Verdict(
        _overlap(drawn, wanted),
        _colour_error(image, truth, wanted),
        255 * float((image - truth.picture()).abs().mean()),
    )


def segment(image: Tensor, layers: Layers) -> Tensor:
    """[h, w], for every pixel the layer whose colour is nearest; a layer that covers nothing has no pixels."""
    away = torch.cdist(lab(image.movedim(0, -1)).flatten(0, 1), lab(layers.colours))
    away[:, layers.masks.flatten(1).amax(1) <= 0.5] = torch.inf
    return away.argmin(1).view(image.shape[1:])


def place(drawn: Tensor, scene: Scene) -> Scene:
    """The scene with its shape where it overlaps best with a mask [h, w]."""
    px = drawn.shape[-1]
    models = _models(scene.shape, scene.fill, px)
    both = _correlate(drawn.float(), models)
    overlaps = both / (drawn.sum() + models.sum((1, 2)).view(-1, 1, 1) - both)
    size, shift = divmod(int(overlaps.argmax()), px * px)
    down, right = ((steps + px // 2) % px - px // 2 for steps in divmod(shift, px))
    return replace(scene, size=_SIZES[size], x=right / (px / 2), y=down / (px / 2))


@cache
def _models(shape: str, fill: str, px: int) -> Tensor:
    """[sizes, h, w], the object in the middle."""
    return torch.stack([(away(Scene(shape, "", "", fill=fill, size=size), px) < 0).float() for size in _SIZES])


def lab(rgb: Tensor) -> Tensor:
    """sRGB [..., 3] in 0..1 to CIE Lab under D65."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = (linear @ torch.tensor(to_xyz).T / torch.tensor([0.9505, 1.0, 1.089])).unbind(-1)
    f, g, h = (torch.where(v > 0.008856, v.clamp(min=0) ** (1 / 3), 7.787 * v + 16 / 116) for v in (x, y, z))
    return torch.stack([116 * g - 16, 500 * (f - g), 200 * (g - h)], -1)


def _correlate(mask: Tensor, models: Tensor) -> Tensor:
    """[models, h, w], pixels that a mask [h, w] shares with each model [models, h, w] shifted by (y, x), cyclic."""
    return torch.fft.irfft2(torch.fft.rfft2(mask) * torch.fft.rfft2(models).conj(), s=mask.shape)


def _overlap(one: Tensor, other: Tensor) -> float:
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


def _colour_error(image: Tensor, truth: Layers, wanted: Tensor) -> float:
    """Over the true pixels whose neighbours are true as well: the rest mix two colours."""
    inside = -F.max_pool2d(-wanted[None].float(), 3, 1, 1)[0] > 0.5
    pixels = inside if inside.any() else wanted
    return float(torch.dist(lab(image[:, pixels].mean(1)), lab(truth.colours[truth.concept])))
