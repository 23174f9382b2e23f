"""A run that ranks share is the run of one rank: the same draws, and the same factors but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from harness.quiet import quieting
from harness.ranks import on_ranks
from harness.toy import CHANNELS, CONFIG, Run, config_of, make_samples
from lora_loom.lora_core.adapter import TEXT_PREFIX
from lora_loom.lora_core.ranks.group import here
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig, TrainConfig
from lora_loom.lora_core.training.inject import attached
from lora_loom.lora_core.training.layers import LayersConfig
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
    "text": lambda: Run(LARGE, last=TEXT_PREFIX + "leave"),
    "average": lambda: Run(config_of("adamw", ema_decay=0.9, max_grad_norm=1e-2)),
}


def outcome(run: Run, results: list[Any]) -> dict[str, Any]:
    """Return all that decides how a run goes on, or that is told of it."""
    state = run.state
    return {
        "factors": state.factors.flat.clone(), "ema": state.ema, "draws": state.generator.get_state(),
        "queue": state.batches.queue, "losses": list(state.losses), "calls": run.toy.calls,
        "results": [[r.grad_norm, r.text_norm, r.preservation] for r in results],
        "looks": [[[look.index, look.u, look.loss] for look in r.looks] for r in results],
        "health": [state.step, state.events, state.health.dropped, state.health.rate],
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
    assert all(same(own, found[0], but="calls") for own in found), "one rank is not where the others are"
    own = found[0]
    print(name, size, relative(own["factors"], wanted["factors"]), max(abs(a/b-1) for a,b in zip(own["losses"], wanted["losses"])))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def same(one: Any, other: Any, but: str = "") -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(same(one[name], other[name]) for name in one if name != but)
    return one == other
