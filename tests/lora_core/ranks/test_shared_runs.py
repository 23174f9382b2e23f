"""A run that ranks share is the run of one rank: the same draws, and the same factors but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.quiet import quieting
from harness.ranks import on_ranks
from harness.toy import CONFIG, Run, config_of, make_pairs, make_samples
from lora_loom.lora_core.adapter import TEXT_PREFIX
from lora_loom.lora_core.data.task import LearnPreference
from lora_loom.lora_core.ranks.group import ElsewhereError, Group, here
from lora_loom.lora_core.runs import checkpoint
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.preference import Preference
from lora_loom.lora_core.training.reduced import check
from lora_loom.lora_core.training.sample import Sample
from lora_loom.lora_core.training.trainer import Trouble, train
from torch import Tensor

SHORT = replace(CONFIG, steps=6)  # of micro-batches of one picture and of two
LARGE = replace(SHORT, batch_size=5, accumulation=1)
KEEPING = replace(LARGE, preservation=0.7, objective=replace(CONFIG.objective, noise_offset=0.1))
CHANCES = LayersConfig(rank_dropout=0.3, layer_dropout=0.2)
ONE_PICTURE = replace(SHORT, batch_size=1, accumulation=3)


def rich() -> list[Sample]:
    """Samples with masks, variants and captions on which the base is preserved."""
    draw = torch.Generator().manual_seed(9)
    found = []
    for number, sample in enumerate(make_samples()):
        mask = torch.rand(sample.latent[:1].shape, generator=draw) if number % 2 else None
        sample = replace(sample, preserved=(50.0, 60.0), neutral=(70.0, 80.0), mask=mask)
        found.append(replace(sample, variants=(replace(sample, latent=sample.latent + 1),)))
    return found


RUNS: dict[str, Callable[[], Run]] = {
    **{name: lambda name=name: Run(replace(config_of(name), steps=6)) for name in OPTIMIZERS},
    "one batch": lambda: Run(LARGE),
    "one by one": lambda: Run(ONE_PICTURE),
    "preserved": lambda: Run(KEEPING, rich()),
    "preserved now and then": lambda: Run(
        replace(KEEPING, preserve_every=2, clear_dropout=0.9, accumulation=2), rich()
    ),
    "chances": lambda: Run(LARGE, options=CHANCES),
    "dora": lambda: Run(LARGE, options=LayersConfig(dora=True, max_norm=0.05, lora_plus_ratio=4.0)),
    "quiet": lambda: Run(LARGE, quiet={"leave": quieting(16, 6)}),
    "preference": lambda: Run(LARGE, make_pairs(), task=Preference(LearnPreference(20.0))),
    "text": lambda: Run(LARGE, last=TEXT_PREFIX + "leave"),
    "average": lambda: Run(config_of("adamw", ema_decay=0.9, max_grad_norm=1e-2)),
}


def outcome(run: Run, results: list[Any]) -> dict[str, Any]:
    """Return all that decides how a run goes on, or that is told of it, and apart what is this rank's own."""
    state = run.state
    return {
        "factors": state.factors.flat.clone(), "ema": state.ema, "draws": state.generator.get_state(),
        "queue": state.batches.queue, "losses": list(state.losses), "gradient": state.factors.flat.grad.clone(),
        "told": [[r.loss, r.grad_norm, r.text_norm, r.preservation, *(x.loss for x in r.looks)] for r in results],
        "shown": [[[look.index, look.u] for look in r.looks] for r in results],
        "health": [state.step, state.events, state.health.dropped, state.health.rate],
        "own": sum(map(len, run.toy.seen)),
    }  # fmt: skip


def all_runs() -> dict[str, Any]:
    return {name: outcome(run := make(), run.go()) for name, make in RUNS.items()}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return all_runs()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Callable[[int], list[dict[str, Any]]]:
    """Return what comes of all runs on so many ranks, by rank."""
    return cache(lambda size: on_ranks(size, all_runs, tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_several_ranks_is_that_of_one(alone, shared, name, size):
    wanted, found = alone[name], [own[name] for own in shared(size)]
    assert same(found), "one rank is not where the others are"
    assert close(found[0], wanted, RUNS[name]().state.factors.flat)
    assert sum(own["own"] for own in found) == wanted["own"] > max(own["own"] for own in found), "each picture once"


def test_a_run_has_the_same_bytes_each_time(shared, tmp_path):
    assert same([one["adamw"] for one in (shared(2)[0], on_ranks(2, the_first, tmp_path)[0])])


def the_first() -> dict[str, Any]:
    return {"adamw": outcome(run := RUNS["adamw"](), run.go())}


# --- what goes wrong on one rank ---


def test_a_rank_short_of_memory_takes_its_share_again_and_the_others_wait(shared, tmp_path):
    found = on_ranks(2, short_of_memory, tmp_path)
    assert [own.pop("room") for own in found] == [0, 1]
    found[1]["own"] = found[0]["own"]
    assert same([*found, shared(2)[0]["one by one"]])


def short_of_memory() -> dict[str, Any]:
    run, room = RUNS["one by one"](), []

    def fail(number: int) -> None:
        if number == 4 and here().rank == 1:
            raise torch.OutOfMemoryError("for the test")

    run.toy.on_call, run.relief = fail, lambda error: lambda: room.append(error)
    return outcome(run, run.go()) | {"room": len(room)}


def test_no_rank_waits_for_one_that_fails_and_all_are_where_they_were(shared, tmp_path):
    """In the fourth step; all can go on from there."""
    found = on_ranks(2, failing, tmp_path)
    assert [own.pop("error")[0] for own in found] == ["ElsewhereError", "ZeroDivisionError"]
    assert all(own.pop("step") == 3 for own in found)
    assert same([*found, shared(2)[0]["one batch"]])


def failing() -> dict[str, Any]:
    run, results, error = RUNS["one batch"](), [], ["", ""]
    failed: list[int] = []

    def fail(number: int) -> None:
        if run.state.step == 3 and here().rank == 1 and not failed:
            failed.append(number)
            raise ZeroDivisionError("for the test")

    run.toy.on_call = fail
    try:
        for result in run.steps():
            results.append(result)
    except (ElsewhereError, ZeroDivisionError) as caught:
        error = [type(caught).__name__, str(caught)]
    step = run.state.step
    return outcome(run, results + run.go()) | {"error": error, "step": step}


def test_all_ranks_stop_behind_the_step_in_which_one_is_asked_to(shared, tmp_path):
    found = on_ranks(3, asked, tmp_path)
    assert [own.pop("stopped") for own in found] == [[1, 2]] * 3
    assert same([*found, shared(3)[0]["one batch"]])


def asked() -> dict[str, Any]:
    run = RUNS["one batch"]()
    given = run.config, run.state, run.toy, run.samples
    with attached(run.state.factors.branches):
        results = list(train(*given, asked=lambda: here().rank == 2 and run.state.step == 1))
    return {"stopped": [result.step for result in results]} | outcome(run, results + run.go())


def test_trouble_is_alike_on_all_ranks_and_as_on_one(tmp_path):
    """A loss that is not finite for one picture, three times; then a learning rate that ruins the run."""
    wanted, found = troubles(), on_ranks(2, troubles, tmp_path)
    for number, start in enumerate([Run(), Run(RUINOUS)]):
        own = [each[number] for each in found]
        assert own[0]["trouble"] == own[1]["trouble"] == wanted[number]["trouble"]
        assert same(own) and close(own[0], wanted[number], start.state.factors.flat)
    assert [len(own["trouble"]) for own in wanted] == [3, 1]
    assert "ruined the run" in wanted[1]["trouble"][0]


RUINOUS = replace(LARGE, steps=4, learning_rate=1.0, optimizer=OptimizerConfig(schedule="constant"))


def troubles() -> list[dict[str, Any]]:
    found = []
    for run in (Run(replace(SHORT, steps=7)), Run(RUINOUS)):
        told: list[Trouble] = []
        if not found:
            run.toy.leave.register_forward_hook(partial(broken, run), prepend=True)
        with attached(run.state.factors.branches):
            results = list(train(run.config, run.state, run.toy, run.samples, told.append))
        found.append(outcome(run, results) | {"trouble": [each.text for each in told]})
    return found


def broken(run: Run, module: Any, args: Any, out: Tensor) -> Tensor:
    """Of the sixth picture, or what is told in its place, until three steps are dropped."""
    bad = [condition in (5.0, -6.0) and run.state.health.dropped < 3 for condition in run.toy.seen[-1]]
    return torch.where(torch.tensor(bad).view(-1, 1, 1, 1), torch.nan, out)


# --- other things ---


def test_a_run_goes_on_with_another_number_of_ranks(alone, tmp_path):
    wanted, path = alone["schedule_free_adamw"], tmp_path / "state.safetensors"
    on_ranks(2, begun, tmp_path, path)
    run = RUNS["schedule_free_adamw"]()
    checkpoint.load(path, run.state, "any")
    run.go()
    assert run.state.step == 6 and close(outcome(run, []) | {"told": wanted["told"]}, wanted, Run().state.factors.flat)


def begun(path: Path) -> int:
    run = RUNS["schedule_free_adamw"]()
    run.go(3)
    if here().first:
        checkpoint.save(path, run.state, "any")
    return run.state.step


def test_passes_in_bf16_find_what_they_find_on_one_rank(tmp_path):
    """The parts of a batch are rounded apart; the factors' copies and gradients of that type are each rank's own."""
    wanted, found = in_bf16(), on_ranks(2, in_bf16, tmp_path)
    assert same(found) and relative(found[0]["gradients"], wanted["gradients"]) < 0.01


def in_bf16() -> dict[str, Any]:
    run, gradients = Run(LARGE), []
    for layer in (run.toy.enter.bfloat16(), run.toy.leave.bfloat16()):
        layer.register_forward_pre_hook(lambda module, args: (args[0].bfloat16(),))
    step = run.state.optimizer.step
    run.state.optimizer.step = lambda: gradients.append(run.state.factors.flat.grad.clone()) or step()
    return outcome(run, run.go(2)) | {"gradients": torch.stack(gradients)}


def test_fewer_pictures_than_ranks_are_refused_before_anything():
    with pytest.raises(ValueError, match="a step has 2 pictures .*go round among 4 ranks; set batch_size to 2 or"):
        check(Group(0, 4), replace(SHORT, batch_size=1, accumulation=2))
    check(Group(0, 4), SHORT)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def close(found: dict[str, Any], wanted: dict[str, Any], start: Tensor) -> bool:
    """Return whether one run has learnt what the other has, but for rounding, from the same draws."""
    for name in ("draws", "queue", "shown", "health"):
        assert same([found[name], wanted[name]]) or not found[name], name
    for name in ("losses", "told"):
        for own, other in zip(found[name], wanted[name], strict=True):
            assert own == pytest.approx(other, rel=1e-6, abs=1e-7)
    kinds = ["factors"] if wanted["ema"] is None else ["factors", "ema"]
    return all(float((found[k] - wanted[k]).norm()) < 1e-6 * float((wanted[k] - start).norm()) for k in kinds)


def same(all_of_them: list[Any]) -> bool:
    """To the bit, but for what is each rank's own."""
    one, *others = all_of_them
    if isinstance(one, Tensor):
        return all(torch.equal(one, other) for other in others)
    if isinstance(one, dict):
        return all(same([own[name] for own in all_of_them]) for name in one if name != "own")
    return all(one == other for other in others)
