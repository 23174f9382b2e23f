"""The mean of saved steps is that of their dense corrections, cut at the least error, at the right weights."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.running_mean import mean, shares, taken
from lora_loom.lora_core.stack.weighted import Weighted
from torch import Tensor

SIZES = {"a": (24, 16, 4), "b": (12, 30, 2), "text_encoders.c": (10, 10, 3)}  # out, in, rank


def step(seed: int, names: str = "") -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    layers = {
        name: LowRank(torch.randn(rank, columns, generator=draw), torch.randn(rows, rank, generator=draw), 2.0 * rank)
        for name, (rows, columns, rank) in SIZES.items() if not names or name in names
    }  # fmt: skip
    return Adapter(layers)


def weighted(adapters: list[Adapter], decay: float) -> list[Weighted]:
    return [Weighted("", a, w, w) for a, w in zip(adapters, shares(len(adapters), decay), strict=True)]


def dense(adapter: Adapter, name: str) -> Tensor:
    rows, columns, _ = SIZES[name]
    held = adapter.layers.get(name)
    return held.to(torch.float64).delta_weight() if held else torch.zeros(rows, columns, dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_it_is_the_fp64_mean_of_dense_corrections_cut_at_the_least_error(decay: float) -> None:
    """One layer is new in the last step only."""
    steps = [step(1, "ab"), step(2, "ab"), step(3)]
    made, lost, whole, way, before, after = mean(weighted(steps, decay)), 0.0, 0.0, 0.0, 0.0, 0.0
    for name, (_, _, rank) in SIZES.items():
        exact = sum(w * dense(each, name) for w, each in zip(shares(3, decay), steps, strict=True))
        u, sigma, vh = torch.linalg.svd(exact, full_matrices=False)
        best = u[:, :rank] * sigma[:rank] @ vh[:rank]
        kept = made.layers[name]
        assert kept.rank == rank and kept.lora_A.dtype == torch.float32
        assert (dense(Adapter(made.layers), name) - best).norm() < 1e-6 * best.norm()
        assert made.errors[name] == pytest.approx(float(sigma[rank:].norm() / sigma.norm()), abs=1e-7)
        lost, whole = lost + float(sigma[rank:].square().sum()), whole + float(sigma.square().sum())
        way += float((best - dense(steps[-1], name)).square().sum())
        before, after = before + float(dense(steps[-1], name).square().sum()), after + float(best.square().sum())
    assert made.errors["text_encoders.c"] == pytest.approx(0, abs=1e-7)
    assert made.error == pytest.approx(sqrt(lost / whole), rel=1e-6) and made.error > 0.1
    assert made.moved == pytest.approx(sqrt(way / before), rel=1e-5)
    assert made.size == pytest.approx(sqrt(after / before), rel=1e-5)


def test_the_mean_of_alike_steps_is_the_step() -> None:
    made = mean(weighted([step(1)] * 3, 0.5))
    assert made.error < 1e-6 and made.moved < 1e-6 and made.size == pytest.approx(1, rel=1e-6)


def test_steps_that_have_learned_nothing() -> None:
    still = Adapter({"a": LowRank(torch.randn(4, 16), torch.zeros(24, 4), 4.0)})
    made = mean(weighted([still, still], 0.0))
    assert not made.layers["a"].delta_weight().any() and made.error == made.moved == 0.0


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_weights_are_those_of_the_recursion(count: int, decay: float) -> None:
    """Of each step as a unit vector."""
    each = torch.eye(count, dtype=torch.float64)
    average = each[0]
    for number in range(1, count):
        average = decay * average + (1 - decay) * each[number]
    wanted = average if decay else each.mean(0)
    assert shares(count, decay) == pytest.approx(wanted.tolist(), abs=1e-12)
    assert sum(shares(count, decay)) == pytest.approx(1)


def test_which_steps_are_taken() -> None:
    assert taken([1000, 250, 500, 750], 0) == [500, 750, 1000]
    assert taken([1000, 250, 500, 750], 251) == [500, 750, 1000]
    assert taken([250, 1000], 2000) == [] and taken([7], 0) == [7]


def test_it_can_be_cancelled() -> None:
    def tick(done: int, total: int) -> None:
        assert total == len(SIZES)
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        mean(weighted([step(1), step(2)], 0.0), tick)
