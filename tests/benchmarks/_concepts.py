"""Defines what the demo base does not know: two shapes, a colour, a texture and a style, and the truth of each picture.

A picture is a stack of flat layers, so that every pixel of it has a layer, and a drawn picture can be taken apart
again. Captions are those of the demo base's language with one word that is new to it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from demo import shapes
from demo.shapes import Scene
from torch import Tensor

PX = 96
SHAPE = 2
_COLOURS = shapes.COLOURS | {"navy": (0.10, 0.20, 0.62)}
_INK = (0.03, 0.03, 0.03)
_INK_WIDTH = 6.0  # pixels


@dataclass(frozen=True)
class Layers:
    """A picture from the bottom up: two tones of the ground, then the shape's from `SHAPE` on."""

    colours: Tensor  # [layers, 3], RGB 0..1
    masks: Tensor  # [layers, h, w], how much of each pixel is covered
    concept: int  # the layer that shows what is new

    def picture(self) -> Tensor:
        """[3, h, w], values 0..1."""
        image = torch.zeros(3, *self.masks.shape[1:])
        for colour, mask in zip(self.colours, self.masks, strict=True):
            image = torch.lerp(image, colour.view(3, 1, 1).expand_as(image), mask)
        return image

    def labels(self) -> Tensor:
        """[h, w], the topmost layer of every pixel."""
        covered = self.masks > 0.5
        return (covered * torch.arange(1, len(covered) + 1).view(-1, 1, 1)).amax(0) - 1


@dataclass(frozen=True)
class Concept:
    """`word` is the new one, in the place of the caption where the base knows the words `known`."""

    word: str
    place: str  # which field of Scene it is the value of
    known: tuple[str, ...]
    shapes: tuple[str, ...] = shapes.SHAPES

    def __str__(self) -> str:
        return f"{_KINDS[self.place]} {self.word!r}"

    def scenes(self, count: int, seed: str) -> list[Scene]:
        """Random pictures with it in which all colours can be told apart."""
        rng, found = random.Random(f"{self.word} {seed}"), []
        while len(found) < count:
            scene = replace(replace(shapes.random_scene(rng, self.shapes), fill=""), **{self.place: self.word})
            if _distinct(scene):
                found.append(scene)
        return found

    def plain(self, scene: Scene) -> Scene:
        """The same picture in known words."""
        return replace(scene, **{self.place: self.known[0]})

    def layers(self, scene: Scene, px: int = PX) -> Layers:
        return _layers(scene, px, self.place)


_KINDS = {"shape": "shape", "colour": "colour", "pattern": "texture", "fill": "style"}
_COMPACT = ("circle", "square", "triangle", "diamond", "hexagon")
CONCEPTS = (
    Concept("heart", "shape", shapes.SHAPES),
    Concept("navy", "colour", ("blue", "purple", "green", "red", "black")),
    Concept("lined", "pattern", shapes.PATTERNS[1:]),
    Concept("inked", "fill", shapes.FILLS[1:], _COMPACT),
    Concept("arrow", "shape", shapes.SHAPES),
)
UNRELATED = (
    "a red ring on a white background", "a yellow circle on a blue background",
    "a green triangle on a black background", "a pink square on a striped green background",
    "a white star on a purple background", "a dotted blue hexagon on a yellow background",
    "a black cross on a checkered orange background", "an orange diamond on a dotted gray background",
)  # fmt: skip


def write(folder: Path, scenes: Sequence[Scene], concept: Concept) -> None:
    """PNG and same-name .txt pairs."""
    folder.mkdir(parents=True)
    for index, scene in enumerate(scenes):
        shapes.write_png(concept.layers(scene).picture(), folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(shapes.caption(scene) + "\n", encoding="ascii")


def away(scene: Scene, px: int = PX) -> Tensor:
    """[h, w], signed distance of every pixel to the shape, in pixels."""
    half = px / 2
    y, x = torch.meshgrid(torch.arange(px) + 0.5 - half, torch.arange(px) + 0.5 - half, indexing="ij")
    radius = scene.size * half
    return shapes.distance(scene.shape, (x - scene.x * half) / radius, (y - scene.y * half) / radius) * radius


def _layers(scene: Scene, px: int, place: str) -> Layers:
    y, x = torch.meshgrid(torch.arange(px) + 0.5, torch.arange(px) + 0.5, indexing="ij")
    inside = 0.5 - away(scene, px)
    ground, tone = _tones(scene.background), torch.tensor(_COLOURS[scene.colour])
    colours, masks = [ground[0], ground[1]], [torch.ones_like(x), _pattern(scene.pattern, x, y)]
    inked = scene.fill == "inked"
    if inked:
        colours, masks = [*colours, torch.tensor(_INK)], [*masks, inside.clamp(0, 1)]
    colours, masks = [*colours, tone], [*masks, (inside - _INK_WIDTH * inked).clamp(0, 1)]
    concept = {"pattern": SHAPE - 1, "fill": SHAPE}.get(place, len(colours) - 1)
    return Layers(torch.stack(colours), torch.stack(masks), concept)


def _tones(colour: str) -> Tensor:
    """[2, 3]: a colour and the second tone of its patterns, as the demo base learned them."""
    tone = torch.tensor(_COLOURS[colour])
    return torch.stack([tone, tone * 0.72 if tone.mean() > 0.2 else tone + 0.22])


def _pattern(name: str, x: Tensor, y: Tensor) -> Tensor:
    if name == "lined":
        return (0.5 + (shapes.PERIOD / 4 - (x % shapes.PERIOD - shapes.PERIOD / 2).abs())).clamp(0, 1)
    return shapes.pattern_mask(name, x, y)


def _distinct(scene: Scene) -> bool:
    """Whether the shape's colour, and ink, stand out from both tones of the ground."""
    tones = _tones(scene.background)
    colours = [_COLOURS[scene.colour], *([_INK] if scene.fill == "inked" else [])]
    apart = min(float((tones - torch.tensor(colour)).norm(dim=1).min()) for colour in colours)
    return apart >= 0.5 and (len(colours) == 1 or torch.dist(torch.tensor(colours[0]), torch.tensor(_INK)) >= 0.5)
