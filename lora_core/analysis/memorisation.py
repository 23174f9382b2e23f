"""Whether samples repeat training pictures: the nearest one to each, beside distances that are no copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..drawing.measure import Cell, Line, Table
from ..stored import as_dict, stored

_SIDE, _POOLS = 32, (1, 2, 4)  # compared at 32, 16 and 8 pixels square
_CROPS, _PLACES = (0.9, 0.8, 0.7), 3
_UNUSUAL = 0.05


@stored("index distance like_training like_base")
@dataclass(frozen=True)
class Nearest:
    """Holds the index of the training picture that is nearest to one sample, their distance, and the shares of training
    pictures and of base samples that are at least as near to their own nearest one."""

    index: int
    distance: float
    like_training: float
    like_base: float | None


@dataclass(frozen=True)
class Memorisation:
    """`training` and `base` are the distances to compare with: of each training picture to the nearest other one, and
    of each of the base model's samples to the nearest training picture."""

    samples: tuple[Nearest, ...]
    training: tuple[float, ...]
    base: tuple[float, ...]

    def near(self) -> list[int]:
        """The samples that are nearer to a training picture than 95% of the training pictures are to each other, and
        than 95% of the base model's samples are to any."""
        return [
            number
            for number, sample in enumerate(self.samples)
            if sample.like_training <= _UNUSUAL and (sample.like_base is None or sample.like_base <= _UNUSUAL)
        ]

    def report(self, names: Sequence[str]) -> str:
        """Return a sentence and figures; `names` are the training pictures'."""
        lines, found = [], self.near()
        if not self.training:
            lines.append("No verdict: with a single training picture, similar samples and copies cannot be told apart.")
        elif not found:
            lines.append(
                "No copies found: no sample is more similar to a training picture than is usual for these pictures."
            )
        else:
            usual = _UNUSUAL * len(self.samples)
            lines.append(
                f"Possible copies: {len(found)} of {len(self.samples)} samples are very similar to a training picture "
                f"(by chance about {usual:.1f}). Compare them in the sheet. They are nearer to it than 95% of training "
                "pictures are to each other and 95% of the base model's samples to any."
            )
            lines += [
                f"  sample {n + 1}: {names[self.samples[n].index]}, distance {self.samples[n].distance:.3f}"
                for n in found
            ]
        lines += [
            "Distances (0 is a copy, about 1 has nothing in common):",
            _spread(
                "  samples with the LoRA to the nearest training picture", [each.distance for each in self.samples]
            ),
            _spread("  samples of the base model to the nearest training picture", self.base),
            _spread("  training pictures to the nearest other one", self.training),
        ]
        return "\n".join(filter(None, lines))

    def table(self, names: Sequence[str]) -> Table:
        """The distance of each sample to its nearest training picture, the nearest first, for the front end."""
        near = self.near()
        lines = [
            Line(
                f"sample {number + 1}",
                (
                    Cell(f"{sample.distance:.3f}", min(sample.distance, 1.0)),
                    Cell(names[sample.index]),
                    Cell("possible copy" if number in near else ""),
                ),
            )
            for number, sample in sorted(enumerate(self.samples), key=lambda each: each[1].distance)
        ]
        title = "Distance to the nearest training picture"
        note = "0 is a copy, about 1 has nothing in common"
        return Table(
            "bars", title, "picture", ("distance", "training picture", ""), tuple(lines), note=note, folded=True
        )

    def figures(self) -> dict[str, object]:
        """Everything measured, for a machine to read."""
        return {
            "samples": as_dict(list(self.samples)),
            "training": list(self.training),
            "base": list(self.base),
            "near": self.near(),
        }


def compared(samples: Sequence[Tensor], training: Sequence[Tensor], base: Sequence[Tensor] = ()) -> Memorisation:
    """Compare samples with training pictures. All are pictures (height, width, 3) in 0..1 and of any size. Raises
    ValueError when there is no training picture."""
    if not training:
        raise ValueError("memorisation needs training pictures, but there is none; connect a data set with pictures")
    among = _distances(training, training).fill_diagonal_(float("inf")).amin(1).tolist() if len(training) > 1 else []
    distances, nearest = _distances([*samples, *base], training).min(1)
    others = distances[len(samples) :].tolist()
    found = [
        Nearest(int(nearest[i]), d, _share(among, d), _share(others, d) if others else None)
        for i, d in enumerate(distances[: len(samples)].tolist())
    ]
    return Memorisation(tuple(found), tuple(among), tuple(others))


def distance(one: Tensor, other: Tensor) -> float:
    """1 - correlation of two pictures, the least of all ways to lay a crop of one on the whole of the other, mirrored
    or not: 0 for a copy in any brightness, contrast and size, about 1 for pictures that have nothing in common."""
    return float(_distances([one], [other]))


def _distances(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """(ones, others)."""
    whole_ones, whole_others = (torch.cat([_views(p, ())[:1] for p in pictures]) for pictures in (ones, others))
    forward = torch.stack([(_views(picture) @ whole_others.T).amax(0) for picture in ones])
    backward = torch.stack([(_views(picture) @ whole_ones.T).amax(0) for picture in others], 1)
    return (1 - torch.maximum(forward, backward)).clamp(min=0)


def _views(picture: Tensor, shares: Sequence[float] = _CROPS) -> Tensor:
    """The picture and its crops, then their mirror images, (views, numbers): each 32 pixels square, without its
    mean and contrast."""
    pixels = rearrange(picture.float(), "height width channel -> 1 channel height width")[:, :3]
    height, width = pixels.shape[-2:]
    boxes = [(0, 0, height, width)]
    for share in shares:
        h, w = max(round(height * share), 1), max(round(width * share), 1)
        places = torch.linspace(0, 1, _PLACES).tolist()
        boxes += [(round((height - h) * y), round((width - w) * x), h, w) for y in places for x in places]
    small = torch.cat([_small(pixels[:, :, y : y + h, x : x + w]) for y, x, h, w in boxes])
    return _normalised(torch.cat([small, small.flip(-1)]))


def _small(pixels: Tensor) -> Tensor:
    return F.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)


def _normalised(pictures: Tensor) -> Tensor:
    """(n, 3, side, side) to (n, numbers) whose inner products are the mean correlation over scales."""
    parts = []
    for pool in _POOLS:
        values = F.avg_pool2d(pictures, pool).flatten(1)
        parts.append(F.normalize(values - values.mean(1, keepdim=True), dim=1, eps=1e-4))
    return torch.cat(parts, 1) / len(_POOLS) ** 0.5


def _share(values: Sequence[float], distance: float) -> float:
    """Return the share of values that are as small as `distance` or smaller; 0 when there are none."""
    return sum(value <= distance for value in values) / len(values) if values else 0.0


def _spread(what: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    ordered = sorted(values)
    return f"{what}: {ordered[0]:.3f} to {ordered[-1]:.3f}, median {ordered[len(ordered) // 2]:.3f}"
