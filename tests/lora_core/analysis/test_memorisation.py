"""Planted copies are found among training pictures, and pictures of their own are not called copies."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from lora_loom.lora_core.analysis.memorisation import compared, distance
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def photo(seed: int, height: int = 96, width: int = 128) -> Tensor:
    """Coloured noise with the spectrum of photographs, (height, width, 3) in 0..1."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(3, height, width)
    for octave in range(2, 6):
        side = 2**octave
        noise = torch.randn(1, 3, side, side, generator=draw) / side
        pixels += F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0]
    low, high = pixels.amin(), pixels.amax()
    return ((pixels - low) / (high - low)).movedim(0, -1)


def as_jpeg(picture: Tensor, quality: int = 20) -> Tensor:
    file = io.BytesIO()
    Image.fromarray((picture.numpy() * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file)) / np.float32(255))


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda picture: picture,
    "jpeg": as_jpeg,
    "mirrored": lambda picture: picture.flip(1),
    "cropped": lambda picture: picture[4:84, 14:124],
    "cropped to a corner and mirrored": lambda picture: picture[:70, :95].flip(1),
    "brighter": lambda picture: (picture * 0.6 + 0.35).clamp(0, 1),
    "in gamma": lambda picture: picture**1.6,
    "small": lambda picture: picture[::3, ::3],
    "noisy": lambda picture: picture + 0.1 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1)),
    "half precision": lambda picture: picture.half(),
}


@pytest.fixture(scope="module")
def training() -> list[Tensor]:
    return [photo(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def base() -> list[Tensor]:
    return [photo(seed, 64, 64) for seed in range(100, 108)]


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found(training: list[Tensor], base: list[Tensor], kind: str) -> None:
    samples = [photo(50), COPIES[kind](training[5]), photo(51, 48, 80)]
    found = compared(samples, training, base)
    assert found.near() == [1] and found.samples[1].index == 5
    assert found.samples[1].distance < 0.5 * min(*found.training, *found.base)
    assert (found.samples[1].like_training, found.samples[1].like_base) == (0.0, 0.0)
    text = found.report([f"{n}.png" for n in range(12)])
    assert "1 of 3 samples" in text and f"sample 2: 5.png, distance {found.samples[1].distance:.3f}" in text


def test_pictures_of_their_own_are_no_copies(training: list[Tensor], base: list[Tensor]) -> None:
    found = compared([photo(seed) for seed in range(200, 212)], training, base)
    assert found.near() == [] and "No copies found: no sample" in found.report([""] * 12)
    assert np.median([sample.like_training for sample in found.samples]) > 0.2


def test_it_works_the_other_way_round_and_with_a_frame() -> None:
    picture = photo(3)
    framed = F.pad(picture.movedim(-1, 0), (8, 8, 6, 6), value=0.5).movedim(0, -1)
    assert distance(framed, picture) == pytest.approx(distance(picture, framed)) and distance(framed, picture) < 0.1


def test_plain_pictures_and_few_training_pictures() -> None:
    plain = torch.full((40, 40, 3), 0.5)
    assert distance(plain, photo(1)) == pytest.approx(1.0, abs=1e-3)
    alone = compared([photo(1)], [photo(1)])
    assert alone.samples[0].distance < 1e-5 and "single training picture" in alone.report(["a"])
    with pytest.raises(ValueError, match="there is none"):
        compared([plain], [])


def test_a_data_set_that_has_doubles_still_shows_copies(base: list[Tensor]) -> None:
    """Two of forty pictures are the same: the usual distance is that of the others."""
    training = [photo(seed, 40, 40) for seed in range(39)]
    training.append(training[0])
    found = compared([training[7], photo(300)], training, base)
    assert found.near() == [0] and min(found.training) < 1e-5
