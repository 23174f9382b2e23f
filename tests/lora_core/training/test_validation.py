"""Which pictures a run is validated on, and with which noises."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.training import validation
from lora_loom.lora_core.training.config import TrainConfig, Validation
from lora_loom.lora_core.training.objective_config import ObjectiveConfig

NAMES = [f"{i}.png" for i in range(20)]
DIGESTS = [f"digest {i}" for i in range(20)]


def chosen(names: list[str] = NAMES, digests: list[str] = DIGESTS, **choices) -> list[list[int]]:
    return validation.choose(names, digests, Validation(**choices))


@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.12, 2), (0.13, 3), (0.5, 10), (0.01, 1)])
def test_a_share_is_held_out_and_never_none(share: float, count: int) -> None:
    found = chosen(held_out=share)
    assert len(found) == count and all(len(own) == 1 for own in found) and found == sorted(found)


def test_no_more_than_are_needed_to_judge() -> None:
    names = [str(i) for i in range(500)]
    assert len(chosen(names, names, held_out=0.5)) == validation.MOST
    assert len(chosen(names, names, held_out=0.0)) == validation.MOST_OF_TRAINING
    assert len(chosen(names[:3], names[:3], held_out=0.0)) == 3


def test_the_choice_is_by_content_not_by_order_and_a_further_picture_changes_one_at_most() -> None:
    kept = {DIGESTS[i] for (i,) in chosen(held_out=0.3)}
    turned = {DIGESTS[::-1][i] for (i,) in chosen(NAMES[::-1], DIGESTS[::-1], held_out=0.3)}
    more = [*DIGESTS, "another"]
    grown = {more[i] for (i,) in chosen([*NAMES, "another.png"], more, held_out=0.3)}
    assert turned == kept and len(kept - grown) <= 1
    assert {DIGESTS[i] for (i,) in chosen(held_out=0.3, seed=1)} != kept


def test_all_sizes_of_a_picture_are_held_out_together() -> None:
    names = [name for name in NAMES for _ in range(2)]
    found = chosen(names, [f"digest {i}" for i in range(40)], held_out=0.2)
    assert len(found) == 4 and all(b == a + 1 and a % 2 == 0 for a, b in found)


def test_something_must_be_left_to_train_on() -> None:
    with pytest.raises(ValueError, match="1 of 1 pictures would be held out and none is left"):
        chosen(NAMES[:1], DIGESTS[:1], held_out=0.1)


def planned(which: list[int], config: TrainConfig = TrainConfig(), draws: int = 4, **choices) -> list[validation.Draw]:  # noqa: B008
    return validation.plan(which, DIGESTS, config, Validation(draws=draws, **choices))


def test_each_draw_lies_in_its_own_share_of_the_law() -> None:
    found = planned([3, 5], draws=8)
    assert [draw.picture for draw in found] == [3] * 8 + [5] * 8
    for own in (found[:8], found[8:]):
        assert [int(draw.u * 8) for draw in own] == list(range(8)), "uniform: one in each eighth"
    assert len({draw.seed for draw in found}) == 16


def test_draws_follow_the_law_of_the_run() -> None:
    late = TrainConfig(objective=ObjectiveConfig(timesteps="shifted", shift=8.0))
    plain, shifted = (torch.tensor([draw.u for draw in planned([0], config)]) for config in (TrainConfig(), late))
    assert torch.allclose(shifted, 8 * plain / (1 + 7 * plain), atol=1e-5)


def test_draws_are_those_of_the_picture_whatever_else_is_looked_at() -> None:
    assert planned([3, 5])[4:] == planned([5]) == planned([5])
    keys = {validation.key(planned(*args)) for args in (([5],), ([6],), ([5], TrainConfig(), 5))}
    keys.add(validation.key(planned([5], seed=1)))
    assert len(keys) == 4 and validation.key(planned([5])) in keys
