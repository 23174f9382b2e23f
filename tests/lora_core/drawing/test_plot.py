"""The loss curve: what it averages, and a picture for any list of losses."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.drawing.plot import draw_curve, smooth

PAPER, RAW, SMOOTH = ((0x1B, 0x1B, 0x1F), (0x3F, 0x5A, 0x78), (0x6F, 0xB3, 0xFF))


def pixels(losses: list[float], steps: int = 100, size: tuple[int, int] = (512, 256)) -> np.ndarray:
    image = draw_curve(losses, steps, size)
    assert image.mode == "RGB" and image.size == size
    return np.asarray(image)


def where(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of every pixel of that colour right of the axis labels and above the caption."""
    found = np.argwhere((picture == colour).all(axis=2))
    return found[(found[:, 1] >= 48) & (found[:, 0] < picture.shape[0] - 22)]


# --- the average ---


@settings(max_examples=50, deadline=None, derandomize=True)
@given(losses=st.lists(st.floats(0, 100), min_size=1, max_size=60), weight=st.sampled_from([0.5, 0.9, 0.97]))
def test_smooth_is_the_weighted_mean_of_what_was_seen(losses, weight):
    for i, value in enumerate(smooth(losses, weight)):
        shares = [weight ** (i - j) for j in range(i + 1)]
        expected = sum(share * loss for share, loss in zip(shares, losses, strict=False)) / sum(shares)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_smooth_has_no_bias_at_the_start():
    assert smooth([]) == [] and smooth([5.0])[0] == pytest.approx(5.0)
    assert smooth([3.0] * 40) == pytest.approx([3.0] * 40)


# --- the picture ---


def test_an_empty_curve_is_the_grid_alone():
    picture = pixels([])
    assert len(where(picture, RAW)) == len(where(picture, SMOOTH)) == 0
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2


def test_one_point_says_its_loss_and_draws_no_line():
    one, other = pixels([0.5]), pixels([0.7])
    assert len(where(one, SMOOTH)) == 0
    assert (one != pixels([])).any() and (one != other).any()


@pytest.mark.parametrize("value", [0.0, 0.25, -1.0, 1e-30, 1e30])
def test_a_flat_curve_is_a_level_line_in_the_middle(value):
    rows = where(pixels([value] * 50), SMOOTH)[:, 0]
    assert len(rows) > 100 and rows.max() - rows.min() <= 2
    assert rows.mean() == pytest.approx((16 + 232) / 2, abs=2)


def test_a_falling_loss_falls_and_progress_is_the_share_of_the_steps():
    half = where(pixels([1 - i / 50 for i in range(50)], 100), SMOOTH)
    assert half[:, 1].max() == pytest.approx(48 + (500 - 48) / 2, abs=3)
    left, right = half[half[:, 1] < 80][:, 0].mean(), half[half[:, 1] > 250][:, 0].mean()
    assert right > left + 60  # rows grow downwards


@pytest.mark.parametrize("count", [2, 451, 452, 5000, 40_000])
def test_any_length_reaches_the_end(count):
    noise = random.Random(0)
    line = where(pixels([noise.random() for _ in range(count)], count), SMOOTH)
    assert line[:, 1].max() >= 490 or count == 2
    assert len(where(pixels([1.0, 0.5], 2), SMOOTH)) > 50


@settings(max_examples=40, deadline=None, derandomize=True)
@given(losses=st.lists(st.floats(0, 1e6), max_size=30), steps=st.integers(30, 1000))
def test_every_list_of_finite_losses_has_a_picture_inside_its_frame(losses, steps):
    picture = pixels(losses, steps, (200, 120))
    assert np.isfinite(picture.astype(float)).all()
    for colour in (RAW, SMOOTH):
        marks = where(picture, colour)
        assert len(marks) == 0 or (marks[:, 0].min() >= 14 and marks[:, 0].max() <= 98)
    assert not any(math.isnan(value) for value in smooth(losses))
    assert (picture[0, 60:] == PAPER).all()
