"""The guided answer: Euler's method from almost noise, u + cfg (c - u), the same noise every time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from harness.toy import Run
from lora_loom.lora_core.training import guided, validation
from lora_loom.lora_core.training.config import TrainConfig, Validation
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.record import Point, Record

DRAWS = validation.plan([0, 3, 6], [f"digest {i}" for i in range(8)], TrainConfig(), Validation(draws=4))


def test_one_draw_for_each_picture_almost_noise() -> None:
    found = guided.plan(DRAWS)
    assert [draw.picture for draw in found] == [0, 3, 6] and {draw.u for draw in found} == {0.985}
    assert [draw.seed for draw in found] == [draw.seed for draw in DRAWS[3::4]]


@pytest.mark.parametrize(("cfg", "calls"), [(3.0, 8), (1.0, 4)])
def test_errors_are_those_of_eulers_method_written_out(cfg: float, calls: int) -> None:
    run, (draw,) = Run(), guided.plan(DRAWS)[:1]
    toy, sample = run.toy, run.samples[0]
    ticks: list[int] = []
    with attached(run.state.factors.branches), torch.no_grad():
        look = partial(guided.errors, cfg=cfg, tick=lambda: ticks.append(1))
        (found,) = validation.measure([draw], run.config, run.state, toy, run.samples, look=look)
        assert toy.calls == calls and len(ticks) == 4
        x0 = sample.latent[None].double()
        noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(draw.seed))[None].double()
        x = 0.015 * x0 + 0.985 * noise
        for now in (0.985, 0.73875, 0.4925, 0.24625):
            level = torch.tensor([now])
            velocity = [
                (x - toy.denoised(x.float(), level, [told]).double()) / now
                for told in (sample.condition, sample.unconditional)
            ]
            x = x - 0.24625 * (velocity[1] + cfg * (velocity[0] - velocity[1]))
    assert found == pytest.approx(float((x - x0).square().mean()), rel=1e-4)


def test_best_looks_at_both_and_at_the_loss_alone_where_a_run_was_begun_without() -> None:
    record = Record(base=[1.0], points=[Point(2, [0.90]), Point(4, [0.94]), Point(6, [0.99])])
    assert record.best() == 2
    record.guided = {"0": [2.0], "2": [1.8], "4": [1.2], "6": [1.18]}
    assert record.best() == 4 and record.standing()[4] == pytest.approx((0.94 + 0.6) / 2)
    record.go_back(4)
    assert record.guided == {"0": [2.0], "2": [1.8]} and record.best() == 2


def test_what_is_kept_is_read_by_version_0_1_0() -> None:
    """Which refuses a record with another key."""
    record = Record(base=[1.0], points=[Point(2, [0.5])], guided={"0": [1.0], "2": [0.5]})
    assert set(record.plain()) == {"windows", "images", "key", "base", "points"}
    assert Record.of(record.plain(), record.guided) == record
