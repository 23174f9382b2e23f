"""Verdicts on synthetic validation curves: each kind is found, and false alarms are as rare as measured here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from lora_loom.lora_core.training.judgement import Verdict, judge
from lora_loom.lora_core.training.record import Point, Record
from lora_loom.lora_core.training.steps import Look, StepResult

STEPS, EVERY, DRAWS = 2000, 100, 4
COUNT = STEPS // EVERY


def history(
    shape: np.ndarray, seed: int, pictures: int = 8, wobble: float = 0.002, spread: float = 0.02, drift: float = 0.0,
    training: float = -0.1,
) -> Record:  # fmt: skip
    """A curve of `shape` (points, the first is the base's), as a share of a loss near 1.

    `spread`: how differently one draw answers to training, `wobble`: noise common to all draws of a point, `drift`:
    its memory from point to point; `training`: the change of the training loss, whose noise is 50 % a step.
    """
    level, answers, noise, alone, windows = chances(seed, pictures, training)
    answer, noise = 1 + spread / 0.02 * 0.3 * answers, noise * wobble
    for i in range(1, len(noise)):
        noise[i] += drift * noise[i - 1]
    losses = [level * (1 + (value - 1) * answer + common) for value, common in zip(shape, noise, strict=True)]
    own = [loss + spread * 0.1 * level * each for loss, each in zip(losses, alone, strict=True)]
    points = [Point(EVERY * (i + 1), x.tolist()) for i, x in enumerate(own[1:])]
    return Record(list(windows), base=own[0].tolist(), points=points)


@cache
def chances(seed: int, pictures: int, training: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple]:
    """Return what is drawn for a run, whatever its curve: the level of each draw and its answer, the noise of each
    point, and of each draw in it, and the windows of its training losses."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.3, 1.7, pictures * DRAWS)
    answers, noise = rng.standard_normal(level.shape), rng.standard_normal(COUNT + 1)
    alone, record = rng.standard_normal((COUNT + 1, *level.shape)), Record()
    for step in range(1, STEPS + 1):
        u = float(rng.uniform())
        loss = (0.5 + u) * (1 + training * step / STEPS) * float(rng.gamma(4, 0.25))
        record.take(StepResult(step, loss, 1.0, 1e-4, looks=(Look(step % 20, u, loss),)), STEPS)
    return level, answers, noise, alone, tuple(record.windows)


def verdicts(record: Record, pictures: int = 8, patience: int = 4, held_out: bool = True) -> Iterator[Verdict]:
    """Yield the verdict after each validation."""
    names = [i for i in range(pictures) for _ in range(DRAWS)]
    for count in range(1, len(record.points) + 1):
        step = record.points[count - 1].step
        seen = Record([w for w in record.windows if w.step <= step], {}, "", record.base, record.points[:count])
        yield judge(seen, names, patience, held_out)


def alarms(shape: np.ndarray, kinds: set[str], runs: int = 60, **noise) -> float:
    """The share of runs in which one of these was ever said."""
    count = sum(
        any(v.kind in kinds for v in verdicts(history(shape, seed, **noise), noise.get("pictures", 8)))
        for seed in range(runs)
    )
    return count / runs


at = np.arange(COUNT + 1) / COUNT
FALLING = 1 - 0.2 * at
LEVEL = np.r_[1.0, np.full(COUNT, 0.9)]
SETTLED = 1 - 0.1 * (1 - np.exp(-at * 20))
RISING = np.where(at < 0.4, 1 - 0.25 * at, 0.9 + 0.15 * (at - 0.4))


@pytest.mark.parametrize("pictures", [1, 3, 8, 16])
def test_a_run_that_gains_goes_on(pictures: int) -> None:
    assert alarms(FALLING, {"plateau", "overfit", "diverged"}, pictures=pictures) <= 0.02


@pytest.mark.parametrize("drift", [0.0, 0.7])
@pytest.mark.parametrize("pictures", [1, 3, 8])
def test_a_level_curve_is_no_overfitting(pictures: int, drift: float) -> None:
    """Also when the wobble wanders, as that of factors does: the chance over a run of 20 validations."""
    assert alarms(LEVEL, {"overfit", "diverged"}, pictures=pictures, drift=drift) <= 0.05
    assert alarms(SETTLED, {"overfit", "diverged"}, pictures=pictures, drift=drift) <= 0.05


@pytest.mark.parametrize("pictures", [3, 8])
def test_what_is_there_is_found(pictures: int) -> None:
    assert alarms(RISING, {"overfit"}, pictures=pictures) >= 0.9
    assert alarms(LEVEL, {"plateau"}, pictures=pictures) >= 0.95
    assert alarms(RISING, {"diverged"}, pictures=pictures, training=0.6) >= 0.8


def test_a_run_that_was_ruined_at_once_is_called_so_after_one_validation() -> None:
    base = [0.3, 0.5, 0.7, 0.4]
    for times, kind in ((11.0, "diverged"), (1.3, "too early"), (0.7, "too early")):
        record = Record(base=base, points=[Point(3, [times * loss for loss in base])])
        verdict = judge(record, [0, 1, 2, 3], 4, True)
        assert verdict.kind == kind
        assert ("ruined: the loss is 11 times the base model's" in verdict.sentence) == (times == 11)
    one_wild_draw = Record(base=base, points=[Point(3, [0.3, 0.5, 0.7, 9.0])])
    assert judge(one_wild_draw, [0, 1, 2, 3], 4, True).kind == "too early"
