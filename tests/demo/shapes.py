"""Captioned pictures of simple shapes: everything the demo base has ever seen, and the two things it has not.

A picture is a `Scene`, drawn with torch alone and anti-aliased through signed distances. `SHAPES` and solid or
patterned fills make the pre-training data; the shapes of `UNSEEN` are kept out of it, so that a LoRA has something new
to teach. `write_dataset` writes folders of PNG and .txt pairs for exactly these.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.88, 0.15),
    "green": (0.10, 0.62, 0.22),
    "blue": (0.15, 0.32, 0.95),
    "purple": (0.52, 0.15, 0.72),
    "pink": (1.00, 0.62, 0.78),
    "gray": (0.52, 0.52, 0.52),
    "white": (1.00, 1.00, 1.00),
    "black": (0.03, 0.03, 0.03),
}
PATTERNS = ("", "striped", "dotted", "checkered")  # "" is plain
FILLS = ("", "striped", "dotted")
PERIOD = 16  # pixels after which every pattern repeats: two latent cells, one patch of the demo base
MIN_CONTRAST = 0.60  # least distance in RGB between a shape and its background

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scene:
    """One picture in words and numbers. Lengths are in halves of the shorter side: size 1 would touch the border."""

    shape: str
    colour: str
    background: str
    pattern: str = ""
    fill: str = ""
    size: float = 0.6
    x: float = 0.0
    y: float = 0.0


def _regular(corners: int, turn: float = 0.0, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners on the unit circle from the top, every second one at radius `inner`; y points down."""
    polar = [(2 * math.pi * (i + turn) / corners, inner if i % 2 else 1.0) for i in range(corners)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle, radius in polar]


def _heart(corners: int = 48) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / corners for i in range(corners)]
    waves = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [(math.sin(a) ** 3, -(w + 2.5) / 15) for a, w in zip(angles, waves, strict=True)]


_BEAM = [(-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3)]
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -0.95), (1.0, 0.75), (-1.0, 0.75)],
    "diamond": [(0.0, -1.05), (0.75, 0.0), (0.0, 1.05), (-0.75, 0.0)],
    "hexagon": _regular(6, 0.5),
    "star": _regular(10, 0.0, 0.45),
    "bar": [(-1.1, -0.32), (1.1, -0.32), (1.1, 0.32), (-1.1, 0.32)],
    "cross": _BEAM + [(-x, -y) for x, y in _BEAM],
    "heart": _heart(),
    "arrow": [(0.0, -1.05), (0.9, -0.1), (0.36, -0.1), (0.36, 0.95), (-0.36, 0.95), (-0.36, -0.1), (-0.9, -0.1)],
}
UNSEEN = ("heart", "arrow")


def polygon_distance(corners: Sequence[tuple[float, float]], x: Tensor, y: Tensor) -> Tensor:
    """Exact signed distance to a simple polygon, negative inside."""
    square, sign = torch.full_like(x, math.inf), torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(corners, [corners[-1], *corners[:-1]], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        square = torch.minimum(square, (wx - ex * along).square() + (wy - ey * along).square())
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        sign = torch.where((above & below & left) | ~(above | below | left), -sign, sign)
    return sign * square.sqrt()


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 1, 0.78 - torch.hypot(x - 0.45, y))


ROUND: dict[str, Distance] = {
    "circle": lambda x, y: torch.hypot(x, y) - 0.95,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.75).abs() - 0.25,
    "crescent": _crescent,
}
SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond", "hexagon", "crescent", "bar", "star")


def distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a shape of size 1, negative inside."""
    if shape in ROUND:
        return ROUND[shape](x, y)
    if shape not in POLYGONS:
        raise ValueError(f"no shape '{shape}'; there are {', '.join([*ROUND, *POLYGONS])}")
    return polygon_distance(POLYGONS[shape], x, y)


def pattern_mask(pattern: str, x: Tensor, y: Tensor) -> Tensor:
    """1 where a pattern shows its second tone; x and y in pixels."""
    if pattern == "striped":
        return (0.5 + (PERIOD / 4 - ((x + y) % PERIOD - PERIOD / 2).abs())).clamp(0, 1)
    if pattern == "dotted":
        return (4.8 - torch.hypot(x % PERIOD - PERIOD / 2, y % PERIOD - PERIOD / 2)).clamp(0, 1)
    if pattern == "checkered":
        return (x // (PERIOD / 2) + y // (PERIOD / 2)) % 2
    return torch.zeros_like(x)


def paint(colour: str, pattern: str, x: Tensor, y: Tensor) -> Tensor:
    """[3, h, w] of a colour; a pattern alternates it with a darker (of black: lighter) tone of itself."""
    tone = torch.tensor(COLOURS[colour]).view(3, 1, 1)
    second = tone * 0.72 if tone.mean() > 0.2 else tone + 0.22
    return torch.lerp(tone, second, pattern_mask(pattern, x, y))


def contrast(one: str, other: str) -> float:
    """Distance of two colours in RGB, 0..1.7."""
    return math.dist(COLOURS[one], COLOURS[other])


def draw(scene: Scene, width: int, height: int, canvas: Tensor | None = None) -> Tensor:
    """[3, height, width], values 0..1. A `canvas` takes the place of the background."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    half = min(width, height) / 2
    radius, left, top = scene.size * half, x - width / 2 - scene.x * half, y - height / 2 - scene.y * half
    away = distance(scene.shape, left / radius, top / radius) * radius
    image = paint(scene.background, scene.pattern, x, y) if canvas is None else canvas
    return torch.lerp(image, paint(scene.colour, scene.fill, x, y), (0.5 - away).clamp(0, 1))


def caption(scene: Scene) -> str:
    """For example "a dotted red ring on a striped blue background"."""

    def noun(*words: str) -> str:
        text = " ".join(word for word in words if word)
        return f"an {text}" if text[0] in "aeiou" else f"a {text}"

    shape, background = noun(scene.fill, scene.colour, scene.shape), noun(scene.pattern, scene.background, "background")
    return f"{shape} on {background}"


def random_scene(rng: random.Random, shapes: Sequence[str] = SHAPES) -> Scene:
    """Two in five backgrounds and four in five shapes are plain; colours that are hard to tell apart never meet."""
    colour = rng.choice(list(COLOURS))
    background = rng.choice([name for name in COLOURS if contrast(name, colour) >= MIN_CONTRAST])
    pattern = "" if rng.random() < 0.4 else rng.choice(PATTERNS[1:])
    fill = "" if rng.random() < 0.8 else rng.choice(FILLS[1:])
    x, y, size = (round(rng.uniform(*ends), 3) for ends in ((-0.12, 0.12), (-0.12, 0.12), (0.55, 0.72)))
    return Scene(rng.choice(shapes), colour, background, pattern, fill, size, x, y)


def batch(rng: random.Random, count: int, width: int, height: int) -> tuple[Tensor, list[str]]:
    """Pre-training pictures [count, 3, height, width], values 0..1, and their captions."""
    scenes = [random_scene(rng) for _ in range(count)]
    return torch.stack([draw(scene, width, height) for scene in scenes]), [caption(scene) for scene in scenes]


def write_png(image: Tensor, path: Path) -> None:
    """[3, h, w], values 0..1, as an 8-bit PNG."""
    from PIL import Image

    Image.fromarray((image.clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy()).save(path)


def write_dataset(folder: str | Path, kind: str, count: int = 24, px: int = 96, seed: int = 0) -> list[Path]:
    """PNG and same-name .txt pairs of one of the `UNSEEN` shapes; every third picture is wider or taller."""
    if kind not in UNSEEN:
        raise ValueError(f"no data set '{kind}'; there are {' and '.join(UNSEEN)}")
    folder, rng = Path(folder), random.Random(f"{kind} {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    wide, flat = px + PERIOD, px - PERIOD
    sizes = [(px, px), (px, px), (wide, flat), (px, px), (px, px), (flat, wide)]
    paths = []
    for i in range(count):
        scene = random_scene(rng, (kind,))
        path = folder / f"{kind}_{i:03d}.png"
        write_png(draw(scene, *sizes[i % len(sizes)]), path)
        path.with_suffix(".txt").write_text(caption(scene) + "\n", encoding="ascii")
        paths.append(path)
    return paths
