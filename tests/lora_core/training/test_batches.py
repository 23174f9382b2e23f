"""Every example its number of times an epoch, in batches of one shape, in an order that can be taken up again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.training.batches import Batches

SHAPES = [(64, 64)] * 7 + [(96, 48)] * 3 + [(48, 96)] * 2


def batches(seed: int = 0, batch_size: int = 2, repeats=1, shapes=SHAPES) -> Batches:
    return Batches(shapes, batch_size, repeats, torch.Generator().manual_seed(seed))


def epoch(source: Batches) -> list[list[int]]:
    taken = [source.next()]
    while source.queue:
        taken.append(source.next())
    return taken


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.sampled_from("abc"), min_size=1, max_size=20), batch_size=st.integers(1, 7),
    repeats=st.integers(1, 4), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_an_epoch_shows_each_example_repeats_times_in_batches_of_one_shape(shapes, batch_size, repeats, seed):
    source = batches(seed, batch_size, repeats, shapes)
    for _ in range(2):
        taken = epoch(source)
        assert Counter(i for batch in taken for i in batch) == {i: repeats for i in range(len(shapes))}
        assert all(len({shapes[i] for i in batch}) == 1 and 1 <= len(batch) <= batch_size for batch in taken)
        most = sum(-(-count * repeats // batch_size) for count in Counter(shapes).values())
        assert len(taken) == most  # only the last batch of a bucket may be smaller


def test_epochs_and_seeds_differ_and_a_seed_repeats():
    source, again, other = batches(1), batches(1), batches(2)
    first, second = epoch(source), epoch(source)
    assert first == epoch(again) and second == epoch(again)
    assert first != second and first != epoch(other)


def test_buckets_are_mixed_over_an_epoch():
    """Batches of one bucket one after another would make the loss wander with the shapes."""
    orders = {tuple(SHAPES[batch[0]] for batch in epoch(batches(seed))) for seed in range(20)}
    assert len(orders) > 10


def test_every_order_of_three_examples_is_drawn():
    source = batches(0, 1, 1, ["a"] * 3)
    counts = Counter(tuple(i for batch in epoch(source) for i in batch) for _ in range(1200))
    assert len(counts) == 6 and min(counts.values()) > 150 and max(counts.values()) < 250


@pytest.mark.parametrize("taken", [0, 1, 5, 8, 9, 17, 40])
def test_an_order_is_taken_up_anywhere(taken):
    whole = batches(3, 2, 2)
    for _ in range(taken):
        whole.next()
    resumed = batches(99, 2, 2)
    resumed.generator.set_state(whole.generator.get_state())
    resumed.queue = [list(batch) for batch in whole.queue]
    assert [resumed.next() for _ in range(30)] == [whole.next() for _ in range(30)]


def test_one_example_goes_on_for_ever():
    source = batches(0, 4, 1, ["only"])
    assert [source.next() for _ in range(5)] == [[0]] * 5


def test_each_example_its_own_number_of_times():
    taken = epoch(batches(0, 2, [3, 1.0, 0.0], ["a"] * 3))
    assert Counter(i for batch in taken for i in batch) == {0: 3, 1: 1}


def test_fractions_are_met_on_average():
    source = batches(0, 1, [1.25, 0.1, 2.5], ["a"] * 3)
    counts = Counter(i for _ in range(2000) for batch in epoch(source) for i in batch)
    assert counts[0] / 2000 == pytest.approx(1.25, abs=0.04) and counts[2] / 2000 == pytest.approx(2.5, abs=0.04)
    assert counts[1] / 2000 == pytest.approx(0.1, abs=0.02)


def test_an_epoch_that_draws_nothing_is_followed_by_one_that_does():
    assert batches(0, 4, 0.05, ["only"]).next() == [0]
