"""Whatever is put in place of something goes again, and what was there comes back, whatever happens in between."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lora_loom.lora_core.swap import holding, swapped


def test_attributes_and_entries_hold_inside_alone() -> None:
    thing, table = SimpleNamespace(a=1, b=2), {"a": 3}
    with swapped([(thing, "a", 10), (table, "a", 30)]):
        assert (thing.a, thing.b, table) == (10, 2, {"a": 30})
    assert (thing.a, thing.b, table) == (1, 2, {"a": 3})


def test_an_error_inside_comes_out_and_leaves_nothing() -> None:
    thing = SimpleNamespace(a=1)
    with pytest.raises(KeyError), swapped([(thing, "a", 10)]):
        raise KeyError
    assert thing.a == 1


def test_what_was_put_before_one_fails_goes_again() -> None:
    thing = SimpleNamespace(a=1)
    with pytest.raises(AttributeError), swapped([(thing, "a", 10), (thing, "missing", 20)]):
        raise AssertionError("not entered")
    assert vars(thing) == {"a": 1}


def test_of_two_in_one_place_the_first_is_what_comes_back() -> None:
    """As when one layer stands under two names."""
    thing = SimpleNamespace(a=1)
    with swapped([(thing, "a", 10), (thing, "a", 20)]):
        assert thing.a == 20
    assert thing.a == 1


def test_places_may_be_made_of_what_is_there_by_then() -> None:
    table = {"a": 1}
    with swapped((table, "a", table["a"] + 1) for _ in range(3)):
        assert table == {"a": 4}
    assert table == {"a": 1}


def test_one_inside_another() -> None:
    thing = SimpleNamespace(a=1)
    with swapped([(thing, "a", 10)]):
        with swapped([(thing, "a", 20)]):
            assert thing.a == 20
        assert thing.a == 10
    assert thing.a == 1


def test_a_tensor_holds_other_values_inside_alone() -> None:
    tensor = torch.tensor([1.0, -0.0, float("nan")])
    before, place = tensor.clone(), tensor.data_ptr()
    with pytest.raises(KeyError), holding(tensor, torch.ones(3)):
        assert tensor.equal(torch.ones(3)) and tensor.data_ptr() == place
        raise KeyError
    assert tensor.view(torch.int32).equal(before.view(torch.int32))
