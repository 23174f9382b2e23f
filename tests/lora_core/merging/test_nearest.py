"""The LoKr and LoHa nearest to a LoRA: their error is the true one, and no other is nearer where there is a best."""

from __future__ import annotations

from math import prod

import pytest
import torch
from lora_loom.lora_core.kinds import LoHa, LoKr
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.nearest import nearest_loha, nearest_lokr

SHAPES = [(24, 16), (30, 42), (24, 16, 3, 3)]


def layer(shape: tuple[int, ...], rank: int = 4, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*size, generator=generator) for size in ((rank, prod(shape[1:])), (shape[0], rank)))
    return LowRank(down, up, 2.0, shape[2:])


def true_error(change: LoKr | LoHa, wanted: LowRank) -> float:
    dense = wanted.to(torch.float64).delta_weight()
    return float((change.difference(torch.zeros_like(dense)) - dense).norm() / dense.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_lokr_has_the_error_that_is_said_and_the_size(shape: tuple[int, ...], rank: int) -> None:
    low_rank = layer(shape)
    found = nearest_lokr(low_rank, rank)
    assert found.error == pytest.approx(true_error(found.change, low_rank), rel=1e-5, abs=1e-6)
    small = found.change.w1[0].numel()
    assert found.change.num_parameters() - small <= (rank or 4) * (shape[0] + prod(shape[1:])) and found.change.fits(
        shape
    )
    cut = low_rank.truncate(rank=rank or 4)
    assert found.error <= low_rank.distance(cut) / low_rank.norm() + 1e-6, "no farther than a LoRA of its size"
    assert (found.error < 1e-6) == (not rank)


def test_a_kronecker_product_is_found_again() -> None:
    first, second = layer((4, 2), 2), layer((6, 8), 1)
    dense = torch.kron(first.delta_weight(), second.delta_weight())
    u, s, v = torch.linalg.svd(dense)
    whole = LowRank(s[:2, None] * v[:2], u[:, :2].contiguous(), 2.0)
    found = nearest_lokr(whole, 1)
    assert found.error < 1e-5 < whole.distance(whole.truncate(rank=1)) / whole.norm() and found.change.w1[0].numel() > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_loha_of_the_same_rank_is_exact(shape: tuple[int, ...]) -> None:
    for rank in (0, 4, 9):
        found = nearest_loha(layer(shape), rank)
        assert found.error == 0 and true_error(found.change, layer(shape)) < 1e-6 and found.change.fits(shape)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_smaller_loha_is_nearer_than_a_lora_of_its_rank(rank: int) -> None:
    low_rank = layer((30, 42))
    found = nearest_loha(low_rank, rank)
    assert found.error == pytest.approx(true_error(found.change, low_rank), rel=1e-4)
    cut = low_rank.truncate(rank=rank)
    assert found.error <= low_rank.distance(cut) / low_rank.norm() * 1.001
    assert found.change.w1_b.shape[0] == rank


def test_a_loha_is_found_again_from_less() -> None:
    """Rank 2 of each side makes rank 4 of the whole."""
    sides = layer((30, 42), 2, seed=1), layer((30, 42), 2, seed=2)
    dense = sides[0].delta_weight() * sides[1].delta_weight()
    u, s, v = torch.linalg.svd(dense)
    whole = LowRank(s[:4, None] * v[:4], u[:, :4].contiguous(), 4.0)
    assert nearest_loha(whole, 2).error < 0.5 * whole.distance(whole.truncate(rank=2)) / whole.norm()


def test_nothing_becomes_nothing() -> None:
    nothing = LowRank(torch.zeros(2, 8), torch.zeros(6, 2), 2.0)
    for found in (nearest_lokr(nothing), nearest_loha(nothing), nearest_loha(nothing, 1)):
        assert found.error == 0 and not found.change.difference(torch.zeros(6, 8)).any()
