"""Checks what a run remembers of its steps: sums that can be checked by hand, and survive a return and the disk."""

from __future__ import annotations

import json

import pytest
from lora_loom.lora_core.training.record import BANDS, Point, Record, band, cells, excess, means, summed, tally
from lora_loom.lora_core.training.steps import Look, StepResult


def step(number: int, *looks: Look, norm: float = 1.0, kept: float = 0.0) -> StepResult:
    return StepResult(number, 1.0, norm, 1e-4, 0.5 * norm, kept, looks)


def test_bands_share_the_quantiles() -> None:
    assert [band(u) for u in (0.0, 0.124, 0.125, 0.999, 1.0)] == [0, 0, 1, BANDS - 1, BANDS - 1]


def test_a_window_has_means_and_its_peak() -> None:
    record = Record()
    closed = [record.take(step(n, Look(0, 0.3, float(n)), norm=n, kept=2.0 * n), 400) for n in range(1, 5)]
    assert closed == [False, False, False, True], "a hundred windows of a run"
    (window,) = record.windows
    assert (window.step, window.count) == (4, 4)
    assert (window.grad_norm, window.grad_peak, window.text_norm, window.preservation) == (2.5, 4.0, 1.25, 5.0)
    assert window.bands[2] == [4, 10.0, 30.0] and sum(cell[0] for cell in window.bands) == 4
    assert record.images == {"0": window.bands}


def test_the_preserving_loss_is_the_mean_of_the_steps_that_have_one() -> None:
    record = Record()
    for n in range(1, 9):
        record.take(step(n, kept=float(n) if n % 4 == 0 else 0.0), 800)
    (window,) = record.windows
    assert (window.count, window.bare, window.preservation) == (8, 6, 6.0)


def test_a_short_run_closes_its_last_window() -> None:
    record = Record()
    assert [record.take(step(n), 150) for n in range(1, 4)] == [False, True, False] and record.take(step(4), 4)


def test_what_is_done_again_counts_once() -> None:
    record = Record(points=[Point(2, [1.0]), Point(4, [2.0])])
    for n in range(1, 6):
        record.take(step(n), 100)
    record.take(step(3), 100)
    assert [window.step for window in record.windows] == [1, 2, 3] and [p.step for p in record.points] == [2]


def test_it_is_plain_data_and_back() -> None:
    record = Record(key="k", base=[1.0], points=[Point(2, [0.5, 0.25])])
    record.take(step(1, Look(3, 0.9, 2.0)), 10)
    assert Record.of(json.loads(json.dumps(record.plain()))) == record
    assert record.points[0].mean == 0.375


def test_sums_and_means() -> None:
    one, other = cells(), cells()
    tally(one, [Look(0, 0.0, 1.0), Look(0, 0.05, 3.0)])
    tally(other, [Look(0, 0.0, 5.0), Look(0, 1.0, 2.0)])
    assert summed([one, other])[0] == [3, 9.0, 35.0]
    assert means(summed([one, other])) == [3.0, *[None] * (BANDS - 2), 2.0]


def test_excess_is_against_what_is_usual_at_the_same_noise() -> None:
    own = cells()
    tally(own, [Look(0, 0.0, 2.2), Look(0, 0.9, 1.1), Look(0, 0.9, 1.3)])
    found = excess(own, [2.0, *[None] * (BANDS - 2), 1.0])
    assert (found.share, found.count) == (pytest.approx((0.1 + 0.1 + 0.3) / 3), 3)
    assert found.error == pytest.approx(((2 * 0.1**2 + 0.3**2 - 3 * (0.5 / 3) ** 2) / 2 / 3) ** 0.5)
    assert excess(cells(), [1.0] * BANDS).count == 0
    tally(single := cells(), [Look(0, 0.0, 1.0)])
    assert excess(single, [1.0] * BANDS).error == float("inf")
