"""Aspect-ratio buckets: every picture is resized and cropped to the bucket nearest to its own shape."""

from __future__ import annotations

import math

from PIL import Image

PictureSize = tuple[int, int]

RESOLUTIONS = (16, 4096)
STEPS = (8, 256)
USUAL_STEP = 32
SMALL, SMALL_STEP = 256, 16  # below this resolution the usual step leaves hardly a shape but the square


def step_at(resolution: int, step: int) -> int:
    """Return the step of the buckets' sides: the usual one, which nobody may have chosen, is finer at resolutions below
    `SMALL`. A picture of 112 x 80 pixels is 112 x 80 at 96, where multiples of 32 would crop it to a square."""
    return SMALL_STEP if step == USUAL_STEP and resolution < SMALL else step


def bucket_sizes(resolution: int, step: int, longest_ratio: float = 2.0) -> list[PictureSize]:
    """(width, height) of all buckets: multiples of `step`, area at most resolution^2, from square to `longest_ratio`.

    The square of `resolution` rounded down to `step` is always first.
    """
    square = resolution // step * step
    if square == 0:
        raise ValueError(f"resolution {resolution} is smaller than the bucket step {step}")
    sizes = {(square, square)}
    for width in range(step, int(resolution * math.sqrt(longest_ratio)) + step, step):
        height = resolution * resolution // width // step * step
        if height and max(width, height) <= longest_ratio * min(width, height):
            sizes |= {(width, height), (height, width)}
    return sorted(sizes, key=lambda size: (abs(math.log(size[0] / size[1])), size))


def check_resolution(resolution: int, step: int) -> None:
    """Raises ValueError when a number is out of range or the square bucket would not be the resolution itself."""
    for name, value, (low, high) in (("resolution", resolution, RESOLUTIONS), ("bucket_step", step, STEPS)):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must be between {low} and {high}")
    step = step_at(resolution, step)
    if resolution % step:
        below = resolution // step * step
        near = " or ".join(str(value) for value in (below, below + step) if value)
        raise ValueError(f"resolution {resolution} is not a multiple of bucket_step {step}; use {near}")


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, as an input called `name` gives them. Raises ValueError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name} is {text!r}; write whole numbers separated by commas, such as 512, 768") from None


def nearest_bucket(size: PictureSize, sizes: list[PictureSize]) -> PictureSize:
    """Return the bucket whose aspect ratio is closest to the picture's (in log), the larger area on a tie."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - ratio), 6), -s[0] * s[1]))


def fit(image: Image.Image, size: PictureSize) -> Image.Image:
    """Resize so that `size` is covered, then crop the centre. Lanczos; the aspect ratio is kept."""
    covering, (left, top) = _covering(image.size, size)
    return image.resize(covering, Image.Resampling.LANCZOS).crop((left, top, left + size[0], top + size[1]))


def frame(found: PictureSize, size: PictureSize) -> tuple[float, float, float, float]:
    """Return what `fit` keeps of a picture of size `found`: left, top, width and height, as parts of its sides."""
    (width, height), (left, top) = _covering(found, size)
    return left / width, top / height, size[0] / width, size[1] / height


def _covering(found: PictureSize, size: PictureSize) -> tuple[PictureSize, PictureSize]:
    """The size that a picture is brought to, and where in it the crop begins."""
    scale = max(size[0] / found[0], size[1] / found[1])
    width, height = (max(round(side * scale), least) for side, least in zip(found, size, strict=True))
    return (width, height), ((width - size[0]) // 2, (height - size[1]) // 2)
