"""Every schedule beside torch's scheduler of that name, or the paper's formula."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.training.config import SCHEDULES, OptimizerConfig
from lora_loom.lora_core.training.schedules import rate
from torch.optim import lr_scheduler

PEAK, WARMUP = 3e-4, 7


def rates(schedule: str, steps: int, warmup: int = 0, restarts: int = 1) -> list[float]:
    config = OptimizerConfig(schedule=schedule, warmup=warmup, restarts=restarts)
    return [rate(config, steps, step, PEAK) for step in range(steps)]


def of_torch(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], PEAK)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


TORCH = {
    "constant": lambda n: lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    "linear": lambda n: lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n),
    "cosine": lambda n: lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=n),
    "cosine_restarts": lambda n: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=n // 4),
}


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize("steps", [4, 100])
@pytest.mark.parametrize("schedule", TORCH)
def test_as_torch(schedule, steps, warmup):
    found = rates(schedule, steps + warmup, warmup, restarts=3)
    assert found[warmup:] == pytest.approx(of_torch(TORCH[schedule](steps), steps), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    wanted = of_torch(lambda o: lr_scheduler.LinearLR(o, 1 / WARMUP, 1.0, total_iters=WARMUP - 1), WARMUP)
    found = rates(schedule, 50, WARMUP)
    assert found[:WARMUP] == pytest.approx(wanted, rel=1e-12)
    assert found[WARMUP - 1] == found[WARMUP] == PEAK
    assert rates(schedule, 4, 4) == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK])


def test_rex_is_the_formula_of_its_paper():
    """Chen et al. 2021, table 1: (1 - z) / (1/2 + 1/2 (1 - z)); slower than linear at first, faster at the end."""
    found = rates("rex", 1000)
    z = torch.arange(1000, dtype=torch.float64) / 1000
    assert found == pytest.approx((PEAK * (1 - z) / (0.5 + 0.5 * (1 - z))).tolist(), rel=1e-12)
    assert all(ours > line for ours, line in zip(found[1:], rates("linear", 1000)[1:], strict=True))


@pytest.mark.parametrize(("steps", "restarts"), [(49, 6), (30, 2), (1000, 1), (10, 9)])
def test_restarts_come_back_to_the_peak_as_often_as_asked(steps, restarts):
    found = rates("cosine_restarts", steps, restarts=restarts)
    assert found.count(PEAK) == restarts + 1
    assert [i for i, r in enumerate(found) if r == PEAK] == [steps // (restarts + 1) * i for i in range(restarts + 1)]


def test_restarts_that_do_not_divide_the_steps_stay_within_the_run():
    found = rates("cosine_restarts", 50, restarts=6)
    assert len(found) == 50 and max(found) == PEAK and min(found) > 0
    assert sum(later > earlier for earlier, later in zip(found, found[1:], strict=False)) == 6
