"""Buckets of many shapes, and pictures that are covered, centred and not distorted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.data.buckets import bucket_sizes, check_resolution, fit, nearest_bucket, step_at
from PIL import Image

RESOLUTIONS = st.tuples(st.integers(1, 16), st.sampled_from([8, 16, 32, 64])).map(lambda p: (p[0] * p[1], p[1]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(choice=RESOLUTIONS, ratio=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_sizes_are_multiples_of_the_step_within_area_and_ratio(choice, ratio):
    resolution, step = choice
    sizes = bucket_sizes(resolution, step, ratio)
    assert sizes[0] == (resolution, resolution) and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0 and 0 < width * height <= resolution * resolution
        assert max(width, height) <= ratio * min(width, height) and (height, width) in sizes
        assert (width, height) == (resolution, resolution) or (width + step) * (height + step) > resolution**2


def test_known_sizes_square_first_then_ever_longer():
    assert bucket_sizes(512, 64) == [(512, 512), (448, 576), (576, 448), (384, 640), (640, 384)]
    assert bucket_sizes(64, 64) == [(64, 64)]
    sizes = bucket_sizes(1024, 64)
    ratios = [abs(math.log(w / h)) for w, h in sizes]
    assert (832, 1216) in sizes and (1344, 768) in sizes and ratios == sorted(ratios)  # two of SDXL's own


def test_a_resolution_below_the_step_is_refused_with_both():
    with pytest.raises(ValueError, match="resolution 48 is smaller than the bucket step 64"):
        bucket_sizes(48, 64)


@pytest.mark.parametrize(
    ("resolution", "step", "near"), [(500, 64, "448 or 512"), (40, 64, "use 64"), (65, 64, "64 or 128")]
)
def test_a_resolution_off_the_step_names_its_neighbours(resolution, step, near):
    with pytest.raises(ValueError, match=f"resolution {resolution} is not a multiple of bucket_step {step}.*{near}"):
        check_resolution(resolution, step)


@pytest.mark.parametrize(
    ("resolution", "step", "name"), [(8, 8, "resolution"), (8192, 64, "resolution"), (512, 4, "bucket_step")]
)
def test_a_number_out_of_range_is_refused(resolution, step, name):
    with pytest.raises(ValueError, match=rf"{name} is \d+; it must be between \d+ and \d+"):
        check_resolution(resolution, step)


@pytest.mark.parametrize(("resolution", "step"), [(16, 16), (512, 64), (1024, 8), (4096, 256)])
def test_a_good_resolution_passes(resolution, step):
    check_resolution(resolution, step)
    assert bucket_sizes(resolution, step)[0] == (resolution, resolution)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000), choice=RESOLUTIONS)
def test_the_nearest_bucket_has_the_nearest_ratio(width, height, choice):
    sizes = bucket_sizes(*choice)
    chosen = nearest_bucket((width, height), sizes)
    gaps = [abs(math.log(w / h * height / width)) for w, h in sizes]
    assert chosen in sizes and gaps[sizes.index(chosen)] <= min(gaps) + 1e-6


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((1000, 1000), (512, 512)), ((4000, 3000), (576, 448)), ((3000, 4000), (448, 576)), ((1920, 1080), (640, 384)),
     ((1, 3000), (384, 640)), ((9000, 100), (640, 384)), ((10, 11), (512, 512))],
)  # fmt: skip
def test_pictures_go_to_the_bucket_of_their_shape(size, bucket):
    assert nearest_bucket(size, bucket_sizes(512, 64)) == bucket


def test_of_equal_ratios_the_larger_area_is_taken():
    assert nearest_bucket((300, 300), [(64, 64), (128, 128), (96, 96)]) == (128, 128)


# --- fit ---


def gradient(width: int, height: int) -> Image.Image:
    """Red tells the column and green the row, linearly from 0 to 255."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).round().astype(np.uint8))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    width=st.integers(16, 400), height=st.integers(16, 400),
    size=st.sampled_from([(64, 64), (96, 48), (48, 96), (128, 64), (200, 40)]),
)  # fmt: skip
def test_fit_covers_crops_the_centre_and_keeps_the_aspect(width, height, size):
    out = np.asarray(fit(gradient(width, height), size)).astype(float)
    assert out.shape == (size[1], size[0], 3)
    scale = max(size[0] / width, size[1] / height)
    for axis, side, source in ((1, size[0], width), (0, size[1], height)):
        values = out[..., 0 if axis == 1 else 1].mean(axis=1 - axis)
        visible = side / (source * scale)  # share of the source that is seen
        step = 255 / source  # of the gradient, per source pixel
        blur = 2.5 * step * max(1, 1 / scale)
        assert values[-1] - values[0] == pytest.approx(255 * visible, abs=2 * blur + 4)
        assert (values[0] + values[-1]) / 2 == pytest.approx(127.5, abs=blur + 255 / (source * scale) + 1)  # centred


def test_a_circle_stays_a_circle():
    yy, xx = np.mgrid[:300, :500]
    disc = Image.fromarray((((xx - 250) ** 2 + (yy - 150) ** 2 < 100**2) * 255).astype(np.uint8)).convert("RGB")
    for size in ((64, 64), (128, 64), (64, 128)):
        seen = np.asarray(fit(disc, size))[..., 0] > 127
        across, down = seen.any(axis=0).sum(), seen.any(axis=1).sum()
        radius = 100 * max(size[0] / 500, size[1] / 300)
        assert down == pytest.approx(2 * radius, abs=1.5) and across == pytest.approx(min(2 * radius, size[0]), abs=1.5)


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_a_picture_of_the_right_size_is_untouched(size):
    image = gradient(*size)
    assert np.array_equal(np.asarray(fit(image, size)), np.asarray(image))


@pytest.mark.parametrize("source", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_pictures_are_enlarged_whole(source):
    assert fit(Image.new("RGB", source, (9, 200, 77)), (64, 32)).getcolors() == [(64 * 32, (9, 200, 77))]


def test_shrinking_averages_rather_than_picks():
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (640, 320))).convert("RGB")
    out = np.asarray(fit(stripes, (64, 64))).astype(float)
    assert abs(out[:, 4:-4] - 127.5).max() < 3


@pytest.mark.parametrize(
    ("resolution", "step", "used"),
    [(96, 32, 16), (240, 32, 16), (256, 32, 32), (512, 32, 32), (96, 8, 8), (128, 64, 64)],
)
def test_only_the_usual_step_is_finer_and_only_at_small_resolutions(resolution, step, used):
    assert step_at(resolution, step) == used
    check_resolution(resolution, step)


def test_a_small_picture_keeps_its_shape_at_the_usual_step():
    sizes = bucket_sizes(96, step_at(96, 32))
    for size in ((112, 80), (80, 112), (96, 96)):
        assert nearest_bucket(size, sizes) == size
