"""Defines what the demo base does not know, and the truth of each picture: two shapes, a colour, a texture, an object
of two colours, a style and a relation.

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
_INK, _CORE = (0.03, 0.03, 0.03), (1.00, 1.00, 1.00)
_INK_WIDTH = 6.0  # pixels
_SECOND = {"target": _CORE, "inked": _INK, "standing": _INK}  # the colour that comes with the new word


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
    kind: str
    place: str  # which field of Scene it is the value of
    known: tuple[str, ...]
    shapes: tuple[str, ...] = shapes.SHAPES

    def __str__(self) -> str:
        return f"{self.kind} {self.word!r}"

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

    def of_its_class(self, count: int) -> list[Scene]:
        """Pictures of the same kind without the new word: known words in turn and, for an adjective, none."""
        words = (*self.known, "") if self.place in ("pattern", "fill") else self.known
        scenes = enumerate(self.scenes(count, "class"))
        return [replace(one, **{self.place: words[i % len(words)]}) for i, one in scenes]

    def layers(self, scene: Scene, px: int = PX) -> Layers:
        return _layers(scene, px, self.place)


_COMPACT = ("circle", "square", "triangle", "diamond", "hexagon")
CONCEPTS = (
    Concept("heart", "shape", "shape", shapes.SHAPES),
    Concept("navy", "colour", "colour", ("blue", "purple", "green", "red", "black")),
    Concept("lined", "texture", "pattern", shapes.PATTERNS[1:]),
    Concept("target", "object of two colours", "shape", shapes.SHAPES),
    Concept("inked", "style", "fill", shapes.FILLS[1:], _COMPACT),
    Concept("standing", "relation", "fill", shapes.FILLS[1:], _COMPACT),
    Concept("arrow", "shape", "shape", shapes.SHAPES),
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
    """[h, w], signed distance of every pixel to the object, in pixels."""
    parts = _parts(scene, px)
    return torch.minimum(parts["body"], parts["under"]) if "under" in parts else parts["body"]


def _parts(scene: Scene, px: int) -> dict[str, Tensor]:
    """[h, w] each, signed distances: the `body`, and what a new word puts within (`core`) or `under` it."""
    half = px / 2
    y, x = torch.meshgrid(torch.arange(px) + 0.5 - half, torch.arange(px) + 0.5 - half, indexing="ij")
    radius = scene.size * half
    x, y = (x - scene.x * half) / radius, (y - scene.y * half) / radius
    if scene.shape == "target":
        body = torch.hypot(x, y)
        return {"body": (body - 0.95) * radius, "core": (body - 0.5) * radius}
    if scene.fill == "standing":
        raised = shapes.distance(scene.shape, x / 0.7, (y + 0.3) / 0.7) * 0.7
        under = torch.maximum(x.abs() - 0.95, (y - 0.72).abs() - 0.2)
        return {"body": raised * radius, "under": under * radius}
    return {"body": shapes.distance(scene.shape, x, y) * radius}


def _layers(scene: Scene, px: int, place: str) -> Layers:
    y, x = torch.meshgrid(torch.arange(px) + 0.5, torch.arange(px) + 0.5, indexing="ij")
    parts, tone = _parts(scene, px), torch.tensor(_COLOURS[scene.colour])
    inside = {name: 0.5 - distance for name, distance in parts.items()}
    word = next((one for one in (scene.shape, scene.fill) if one in _SECOND), "")
    second = {"target": "core", "inked": "body", "standing": "under"}.get(word)
    above = [(tone, inside["body"] - _INK_WIDTH * (word == "inked"))]
    if second:  # a core is on top of the body, the rest beneath
        extra = (torch.tensor(_SECOND[word]), inside[second])
        above = [*above, extra] if second == "core" else [extra, *above]
    ground = _tones(scene.background)
    colours = [ground[0], ground[1], *(colour for colour, _ in above)]
    masks = [torch.ones_like(x), _pattern(scene.pattern, x, y), *(mask.clamp(0, 1) for _, mask in above)]
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
    """Whether the object's colour, and the one that comes with the word, stand out from both tones of the ground, and
    from each other."""
    tones = _tones(scene.background)
    second = [_SECOND[word] for word in (scene.shape, scene.fill) if word in _SECOND]
    colours = torch.tensor([_COLOURS[scene.colour], *second])
    apart = torch.cdist(colours, torch.cat([tones, colours]))
    return bool((apart + torch.eye(len(colours), 2 + len(colours)).roll(2, 1) * 9 >= 0.5).all())
