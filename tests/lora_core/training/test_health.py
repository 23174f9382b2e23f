"""A run that goes wrong: steps are dropped, the run goes back once, then it stops; all of it resumes."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness.toy import CONFIG, Run, config_of
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training import health, ruin
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.ruin import ProbeBatch, rise
from lora_loom.lora_core.training.trainer import Trouble, train

LONG = replace(CONFIG, steps=70, accumulation=1, optimizer=OptimizerConfig(warmup=3, ema_decay=0.9))


def broken_at(run: Run, calls: set[int], value: float = math.nan) -> Run:
    """The network's output is `value` at these calls of it, counted over the whole run."""

    def poison(module, args, out):
        return torch.full_like(out, value) if run.toy.calls in calls else out

    run.toy.leave.register_forward_hook(poison, prepend=True)
    return run


def steps(run: Run, troubles: list[Trouble]) -> list[int]:
    with attached(run.state.factors.branches):
        return [result.step for result in train(run.config, run.state, run.toy, run.samples, troubles.append)]


def test_a_dropped_step_is_counted_and_made_up_for():
    run, troubles = broken_at(Run(LONG), {5, 6, 20}), []
    assert steps(run, troubles) == list(range(1, 71))
    assert [trouble.text for trouble in troubles] == [
        "step 5 was dropped: the loss was nan", "step 5 was dropped: the loss was nan",
        "step 18 was dropped: the loss was nan",
    ]  # fmt: skip
    assert run.state.health == health.Health(dropped=3) and run.state.events == 73
    assert len(run.state.losses) == 70 and all(map(math.isfinite, run.state.losses))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_in_a_row_go_back_to_the_last_good_state_at_a_lower_rate(name):
    config = replace(config_of(name), steps=70, accumulation=1)
    run, troubles, rates = broken_at(Run(config), {58, 59, 60}), [], []
    with attached(run.state.factors.branches):
        for result in train(config, run.state, run.toy, run.samples, troubles.append):
            rates.append((result.step, result.learning_rate))
            if result.step == 50 and len(rates) == 50:
                good = run.bytes(), [list(values) for values in run.state.optimizer.state.values()]
    back = troubles[-1]
    assert [t.went_back for t in troubles] == [False] * 3 + [True] and back.step == 50
    words = f"at step 58; back to step 50; the learning rate was lowered to {config.learning_rate * 0.3:g}"
    assert back.text == f"loss or gradient were not finite 3 times in a row {words}"
    assert [step for step, _ in rates] == [*range(1, 58), *range(51, 71)]
    by_step = dict(rates[:57])
    assert all(rate == pytest.approx(by_step[step] * 0.3) for step, rate in rates[57:] if step in by_step)
    assert good[0] != run.bytes() and len(run.state.losses) == 70
    assert run.state.health == health.Health(dropped=3, rate=0.3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_gone_back_to_is_what_was_learnt_then(name):
    config = replace(config_of(name), steps=70, accumulation=1)
    run, twin = broken_at(Run(config), {58, 59, 60}), Run(config)
    twin.go(50)

    class SeenError(Exception):
        pass

    def stop(trouble: Trouble) -> None:
        if trouble.went_back:
            raise SeenError

    with attached(run.state.factors.branches), pytest.raises(SeenError):
        list(train(config, run.state, run.toy, run.samples, stop))
    assert run.bytes() == twin.bytes() and run.state.losses == twin.state.losses and run.state.step == 50
    for one, two in zip(*(r.state.optimizer.state.values() for r in (run, twin)), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_second_time_the_run_stops_with_a_sentence_and_its_last_good_state():
    run, troubles = broken_at(Run(LONG), {*range(60, 200)}), []
    with pytest.raises(FloatingPointError) as error:
        steps(run, troubles)
    assert str(error.value) == (
        "loss or gradient were not finite 3 times in a row at step 51, even with the learning rate lowered to 0.0009; "
        "the run was kept as it was at step 50. Choose a learning_rate below 0.0009, or load the model as bf16 or fp32"
    )
    twin = Run(LONG)
    twin.go(50)
    assert run.bytes() == twin.bytes() and run.state.health == health.Health(dropped=6, rate=0.3)
    assert not run.state.torn


@pytest.mark.parametrize("cut", [4, 5, 18, 49, 50, 57, 58, 59, 60, 61, 66, 75])
def test_resume_in_the_midst_of_trouble_ends_in_the_same_bytes(tmp_path: Path, cut: int):
    """CutError off after so many events, by whichever of them: drops, the return, or steps."""
    bad = {5, 20, 60, 61, 62}
    whole = broken_at(Run(LONG), bad)
    steps(whole, [])
    run = broken_at(Run(LONG), bad)

    class CutError(Exception):
        pass

    def count(_: object) -> None:
        if run.state.events == cut:
            raise CutError

    with attached(run.state.factors.branches), pytest.raises(CutError):
        for _ in train(LONG, run.state, run.toy, run.samples, count):
            count(None)
    checkpoint.save(tmp_path / "state.safetensors", run.state, "print")
    calls = run.toy.calls
    run = broken_at(Run(LONG), bad)
    run.toy.calls = calls
    checkpoint.load(tmp_path / "state.safetensors", run.state, "print")
    steps(run, [])
    for name, each in (("one", run), ("two", whole)):
        checkpoint.save(tmp_path / name, each.state, "print")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_update_that_is_cut_off_marks_the_state():
    run = Run(LONG)
    run.go(3)
    original = run.state.optimizer.step
    run.state.optimizer.step = lambda: (original(), run.boom())
    with pytest.raises(AttributeError):
        run.go()
    assert run.state.torn


def losses(count: int, spread: float, seed: int, rise: float = 0.0, at: int = 10**9) -> list[float]:
    draw = random.Random(seed)
    return [math.exp(draw.gauss(rise if i >= at else 0.0, spread)) for i in range(count)]


@pytest.mark.parametrize("spread", [0.0, 0.4, 1.3, 2.5])
def test_no_false_alarm_in_healthy_losses(spread: float):
    for seed in range(10):
        values = losses(800, spread, seed)
        assert not any(health.diverged(values[:count]) for count in range(0, 801, 7))


@pytest.mark.parametrize(("spread", "times"), [(0.0, 4), (0.4, 4), (1.3, 20)])
def test_a_loss_that_rises_for_good_is_seen_within_fifty_steps(spread: float, times: float):
    values = losses(400, spread, 1, math.log(times), at=300)
    seen = next(count for count in range(401) if health.diverged(values[:count]))
    assert 320 <= seen <= 350
    assert not health.quiet(values[:320])


def test_a_run_that_diverges_goes_back_before_the_rise():
    """From step 120 on the network shouts; the rate is what a healthy one would need."""
    config = replace(LONG, steps=160)
    run, troubles = Run(config), []

    def shout(module, args, out):
        return out * 30 if 121 <= run.toy.calls <= 150 else out

    run.toy.leave.register_forward_hook(shout, prepend=True)
    seen = steps(run, troubles)
    (trouble,) = troubles
    assert trouble.step == 100 and trouble.went_back
    assert trouble.text.startswith("the loss rose for good up to step 1") and len(seen) > 160 and seen[-1] == 160


@pytest.mark.parametrize(
    ("values", "measured"),
    [([0.49, 2.0], True), ([0.85, 0.81, 5.3], True), ([0.9, 1.0, 0.8, 1.2], False), ([0.5], False),
     ([0.5, 0.6, 0.7, 0.9, 1.1, 1.3, 1.8], True), ([], False),
     ([1.0, math.inf], False), ([1.0] * 120 + [9.0], False)],
)  # fmt: skip
def test_a_loss_far_above_all_before_is_reason_to_measure(values: list[float], measured: bool) -> None:
    assert health.suspicious(values) is measured


def test_what_is_measured_is_the_change_since_at_equal_noise():
    run = Run(LONG)
    run.go(3)
    part = ProbeBatch(torch.stack([sample.latent for sample in run.samples[:2]]), [0.0, 1.0], None)
    now, start = run.state.factors.flat.clone(), run.state.good["factors"]
    draws = run.state.generator.get_state()
    with attached(run.state.factors.branches):
        assert rise(LONG, run.state.factors, now, run.toy, [part]) == 1
        times = rise(LONG, run.state.factors, start, run.toy, [part])
        run.state.factors.flat.mul_(30)
        far = rise(LONG, run.state.factors, start, run.toy, [part])
        rows = [ProbeBatch(part.x0[i : i + 1], [float(i)], None, first=i, rows=2) for i in range(2)]
        apart = [ruin._sums(LONG, run.state.factors, start, run.toy, [row]) for row in rows]
        whole = ruin._sums(LONG, run.state.factors, start, run.toy, [part])
    assert 0.5 < times < 1.5 < health.RUINED < far
    assert [sum(each) for each in zip(*apart, strict=True)] == pytest.approx(whole, rel=1e-5), "shares of two ranks"
    assert torch.equal(run.state.generator.get_state(), draws) and torch.equal(run.state.factors.flat, now * 30)
