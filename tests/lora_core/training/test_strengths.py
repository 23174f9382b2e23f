"""The suggested strength: the smallest that keeps the concept, and how much else changes there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness.toy import CONFIG, Run
from lora_loom.lora_core.training import guided, validation
from lora_loom.lora_core.training.config import Validation
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.strengths import STRENGTHS, Scale, StrengthCurve, StrengthPoint

ALL = (0.0, *STRENGTHS)


def curve(concept: list[float], leak: list[float] | None = None) -> StrengthCurve:
    points = [StrengthPoint(*each) for each in zip(ALL, concept, leak or ALL, strict=True)]
    return StrengthCurve(tuple(points), 2, 8)


def test_the_smallest_strength_that_keeps_the_concept_is_suggested() -> None:
    early = curve([0.0, 0.5, 0.9, 1.0, 1.0, 0.9], [0.0, 0.2, 0.4, 0.7, 1.0, 1.4])
    assert early.suggested() == StrengthPoint(0.7, pytest.approx(0.98), pytest.approx(0.64))
    assert early.sentence() == "Use it at 0.7: 98 % of what it learned, 64 % of what else it changes"
    late = curve([0.0, 0.2, 0.4, 0.7, 1.0, 1.2])
    assert late.suggested() == StrengthPoint(1.0, 1.0, 1.0), "never more than it was trained at"
    assert "100 % of what it learned, 100 % of what else" in late.sentence()


def test_nothing_is_suggested_where_nothing_is_gained() -> None:
    none = StrengthCurve((), 1, 8)
    assert none.suggested() is None
    assert none.sentence().startswith("No strength is suggested: at 1 the LoRA is no nearer to the picture held out")


@pytest.fixture(scope="module")
def learned() -> Run:
    run = Run(replace(CONFIG, steps=60, learning_rate=2e-2, caption_dropout=0.0))
    run.go()
    return run


def scale(run: Run, ticks: list[int]) -> Scale:
    return Scale(run.config, run.state, run.toy, run.samples, 1.0, lambda: ticks.append(1))


def draws() -> list[validation.Draw]:
    return validation.plan([0, 1], [f"digest {i}" for i in range(8)], CONFIG, Validation(draws=8))


def test_the_curve_is_that_of_the_run_at_each_strength(learned: Run) -> None:
    ticks, neutral = [], [(0, 0.5), (1, -0.5)]
    factors, own = learned.state.factors, learned.state.factors.flat.clone()
    with attached(factors.branches):
        found = scale(learned, ticks).curve(draws(), neutral)
        of = learned.config, learned.state, learned.toy, learned.samples
        base = torch.tensor(validation.measure(draws(), *of, base=True)).mean()
        with factors.at(0.5):
            half = torch.tensor(validation.measure(draws(), *of)).mean()
        full = torch.tensor(validation.measure(draws(), *of)).mean()
    assert [point.strength for point in found.points] == [*ALL] and (found.pictures, found.captions) == (2, 2)
    zero, one, point = found.points[0], found.points[4], found.points[2]
    assert (zero.concept, zero.leak) == (0, 0) and (one.concept, one.leak) == (1, 1)
    assert point.concept <= float((base - half) / (base - full)) + 1e-6, "what keeps less counts"
    leaks = [each.leak for each in found.points]
    assert leaks == sorted(leaks) and 0.3 < point.leak < 0.8
    assert torch.equal(factors.flat, own) and all(branch.strength == 1 for branch in factors.branches.values())
    assert len(ticks) > 6 * (guided.STEPS + 2), "a cancel is heard between forwards"


def test_a_lora_that_is_farther_than_its_base_gets_none(learned: Run) -> None:
    flat = learned.state.factors.flat
    before = flat.clone()
    with attached(learned.state.factors.branches):
        for part in learned.state.factors.parts:
            part.flat.mul_(-3)
        learned.state.factors.parts[0].flat.abs_()
        found = scale(learned, []).curve(draws(), [(0, 0.5)])
    flat.copy_(before)
    assert found.points == () and found.suggested() is None
