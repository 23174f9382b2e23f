"""Plans: what is counted, which measures are taken, and what a refusal says."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from lora_loom.lora_core.training.config import OPTIMIZERS, OptimizerConfig
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.meter import Meter, OperatorWork
from lora_loom.lora_core.training.optimizers.build import optimizer_of
from lora_loom.lora_core.training.plan import (
    GB,
    SLACK,
    Measures,
    Need,
    Plan,
    QuietNeed,
    Rates,
    blind,
    candidates,
    choose,
    describe,
    optimiser_bytes,
    refusal,
)
from torch import nn

CPU = torch.device("cpu")


def needs(measures: Measures) -> Need:
    """10 GB of weights in blocks and 8 of activations, of which checkpointing leaves 2."""
    weights = round(10 * GB * (1 - measures.offload))
    return Need(weights, 0, round((2 if measures.checkpointing else 8) * GB))


def test_a_need_adds_up() -> None:
    need = Need(weights=100, factors=10, activations=1000, work_space=5)
    assert need.total == 100 + 10 + 1000 * (1 + SLACK) + 5
    assert optimiser_bytes(1000) == 16_000


def test_quiet_directions_are_kept_beside_the_factors_and_their_sketches_before_the_first_step() -> None:
    assert Need(100, 10, 1000, assistants=7).total == Need(100, 10, 1000).total + 7
    assert "assistants 1.5" in str(Need(100, 10, 1000, assistants=round(1.5 * GB)))
    need = Need(100, 10, 1000, quiet=QuietNeed(kept=50, sketches=30))
    assert need.total == 160 + 1000 * (1 + SLACK) and "quiet directions" in str(need)
    assert replace(need, quiet=QuietNeed(kept=50, sketches=900)).total == 1000 + 1000 * (1 + SLACK)
    plan = Plan(Measures(), need)
    assert "a step, 20 s; before it about 7 s for quiet directions" in describe(plan, GB, 0.2, 100, once=7)
    assert "quiet" not in describe(Plan(Measures(), Need(100, 10, 1000)), GB, 0.2, 100)


@pytest.mark.parametrize(("previews", "more", "said"), [(999, 1000, "activations"), (3000, 3000, "previews")])
def test_a_step_and_a_preview_are_never_held_at_once(previews: int, more: int, said: str) -> None:
    need = Need(weights=100, factors=10, activations=1000, previews=previews)
    assert need.total == 110 + more * (1 + SLACK)
    assert [name for name in ("activations", "previews") if name in str(need)] == [said]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimiser_is_counted(name: str) -> None:
    layers = {"layer": nn.Linear(320, 640)}
    factors = Factors(layers, 8, 8.0, torch.Generator().manual_seed(0))
    matrices = [matrix for branch in factors.branches.values() for matrix in (branch.lora_A, branch.lora_B)]
    optimizer = optimizer_of(OptimizerConfig(name, schedule="constant"), [(factors.flat, matrices, 1e-3)])
    factors.flat.grad.fill_(0.1)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    held = sum(tensor.nbytes for tensor in (*kept, factors.flat, factors.flat.grad))
    predicted = optimiser_bytes(factors.flat.numel(), name)
    assert optimiser_bytes(1000, name, quiet=True) == optimiser_bytes(1000, name) + 4000
    assert held <= predicted * 1.01
    assert name == "adafactor" or held >= predicted * 0.95


@pytest.mark.parametrize(
    ("free", "measures"),
    [
        (20, Measures(False)),
        (18, Measures(True)),
        (12, Measures(True, 0.25)),
        (7.2, Measures(True, 0.5)),
        (5, Measures(True, 0.75)),
        (2.2, Measures(True, 1.0)),
    ],
)
def test_the_mildest_measures_that_fit(free: float, measures: Measures) -> None:
    plan = choose(Measures(False), True, needs, free * GB)
    assert plan.measures == measures and plan.need.total <= free * GB


def test_nothing_is_taken_that_was_not_asked_for() -> None:
    plan = choose(Measures(False), False, needs, 15 * GB)
    assert plan == Plan(Measures(False), needs(Measures(False))) and plan.need.total > 15 * GB


def test_without_a_fit_the_least(free: float = GB) -> None:
    assert choose(Measures(False), True, needs, free).measures == Measures(True, 1.0)


@pytest.mark.parametrize(("free", "keep"), [(40, True), (26.5, True), (25.5, False)])
def test_room_to_spare_is_taken_for_speed(free: float, keep: bool) -> None:
    def more(measures: Measures) -> Need:
        return replace(needs(measures), weights=round(12.7 * GB) if measures.keep_casts else 10 * GB)

    plan = choose(Measures(False, keep_casts=True), True, more, free * GB)
    assert plan.measures == Measures(False, keep_casts=keep)
    assert str(plan.measures).endswith("converted weights kept") == keep


def test_casts_are_held_in_blocks_where_not_all_of_them_can_be_kept() -> None:
    block, none = Measures(hold_casts=True), Measures()
    assert list(candidates(Measures(keep_casts=True), True))[:3] == [Measures(keep_casts=True), block, none]
    plain = Measures(False, keep_casts=True)
    assert list(candidates(plain, True))[:4] == [plain, Measures(False), block, none]
    assert str(block).endswith("converted weights of recomputed blocks kept")


def test_graphs_are_taken_when_they_are_asked_for_and_fit_and_never_else() -> None:
    asked = Measures(False, graph=True)
    assert list(candidates(asked, True))[:3] == [asked, Measures(False), Measures(True)]
    assert list(candidates(asked, False)) == [asked, Measures(False)], "memory as set says nothing of graphs"
    assert not any(each.graph for each in candidates(Measures(False, keep_casts=True), True))
    assert asked.replays and not Measures(graph=True).replays and not Measures(False, 0.5, graph=True).replays

    def more(measures: Measures) -> Need:
        return replace(needs(measures), graphs=8 * GB * measures.replays)

    assert more(asked).step - more(Measures(False)).step == pytest.approx(8 * GB * (1 + SLACK)), "it is held to a step"
    found = [choose(asked, True, more, free * GB).measures for free in (40, 30)]
    assert found == [asked, Measures(False)], [more(asked).total / GB, more(Measures(False)).total / GB]


def test_asked_for_offload_is_never_lessened() -> None:
    assert list(candidates(Measures(True, 0.6), True)) == [Measures(True, share) for share in (0.6, 0.75, 1.0)]


def test_a_refusal_names_both_figures_and_the_three_best_changes() -> None:
    changes = {
        "rank 8": 11.9 * GB,
        "batch_size 1": 6 * GB,
        "offload 1.0": 3 * GB,
        "resolution 768": 8 * GB,
        "no": 20 * GB,
    }
    text = refusal(choose(Measures(True), False, needs, 5 * GB), 5 * GB, changes)
    assert (
        "not enough memory: training needs 12.1 GB but 5.0 GB is free" in text
        and "weights 10.0, activations 2.0" in text
    )
    assert text.endswith("offload 1.0 needs 3.0 GB; batch_size 1 needs 6.0 GB; resolution 768 needs 8.0 GB")


def test_the_line_on_the_node() -> None:
    plan = Plan(Measures(True, 0.5), Need(round(5.1 * GB), round(0.3 * GB), 2 * GB))
    assert describe(plan, 11.2 * GB, 1.1, 1000) == (
        "needs 7.5 of 11.2 GB free: weights 5.1, LoRA and optimiser 0.3, activations 2.0 "
        "(checkpointing, 50% of blocks offloaded); about 1.1 s a step, 18 min"
    )


def test_the_line_names_the_ram_that_is_pinned() -> None:
    plan = Plan(Measures(True, 0.5), Need(round(5.1 * GB), round(0.3 * GB), 2 * GB))
    line = describe(plan, 11.2 * GB, 1.1, 1000, pinned=1.3 * GB)
    assert line.endswith("about 1.1 s a step, 18 min; 1.3 GB of pinned RAM is used to copy offloaded blocks")


def test_seconds_follow_the_rates() -> None:
    rates = Rates(flops=1e12, moved=1e10, launch=1e-5, copied=1e9)
    assert rates.seconds(OperatorWork(flops=int(2e12), moved=int(5e9), launches=100)) == pytest.approx(2.5)
    assert rates.seconds(OperatorWork(launches=1000)) == pytest.approx(0.01)
    assert rates.seconds(OperatorWork(flops=int(1e12)), streamed=int(1e9)) == pytest.approx(3.0)
    beside = replace(rates, overlapped=True)
    assert beside.seconds(OperatorWork(flops=int(1e12)), streamed=int(1e9)) == pytest.approx(2.0), "copies take longer"
    assert beside.seconds(OperatorWork(flops=int(3e12)), streamed=int(1e9)) == pytest.approx(3.0), "computing does"


def test_the_meter_counts_what_lives_at_once() -> None:
    gc.collect()
    with Meter(CPU) as meter:
        a = torch.zeros(1000)  # 4000 bytes
        view = a[:10].view(2, 5)
        b = a + 1
        del a, view
        c = torch.zeros(500)
        del b
        d = torch.zeros(2000)
        del c, d
    assert meter.peak == 2000 + 8000


def test_the_meter_leaves_out_what_was_there_before() -> None:
    weight, x = torch.zeros(300, 200), torch.zeros(10, 200)
    with Meter(CPU) as meter:
        y = nn.functional.linear(x, weight)  # looks at the weight through a transposed view
        y += 1
        del y
    assert meter.peak == 10 * 300 * 4


def test_the_meter_counts_work_and_recomputed_work() -> None:
    layer, x = nn.Linear(32, 64, bias=False), torch.zeros(8, 32)

    def flops(recompute: bool) -> int:
        with Meter(CPU) as meter:
            run = torch.utils.checkpoint.checkpoint
            y = x.clone().requires_grad_()
            (run(lambda y: layer(y).sin(), y, use_reentrant=False) if recompute else layer(y).sin()).sum().backward()
        return meter.flops

    product = 2 * 8 * 32 * 64
    assert flops(False) == 3 * product  # forward, for the input, for the weight
    assert flops(True) == 4 * product


@pytest.mark.parametrize(
    ("free", "asked", "taken"),
    [
        (20, Measures(False), Measures()),
        (10, Measures(False), Measures(True, 0.25)),
        (4, Measures(True, 0.5), Measures(True, 0.75)),
        (1, Measures(), Measures(True, 1.0)),
    ],
)
def test_what_is_taken_where_a_step_is_not_known(free: float, asked: Measures, taken: Measures) -> None:
    def weights(measures: Measures) -> float:
        return needs(measures).weights

    assert blind(asked, True, weights, free * GB) == taken
    assert blind(asked, False, weights, free * GB) == asked
