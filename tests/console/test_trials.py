"""Which runs a sweep is made of."""

from __future__ import annotations

import pytest
from lora_loom.console.trials import Swept, combinations, trials


def test_every_combination_once_the_last_input_changing_fastest() -> None:
    found = trials(b"{}", [], [Swept.read("12.rank=8, 16"), Swept.read("learning_rate=1e-4,3e-4")])
    assert [each.settings for each in found] == [
        ["12.rank=8", "learning_rate=1e-4"], ["12.rank=8", "learning_rate=3e-4"],
        ["12.rank=16", "learning_rate=1e-4"], ["12.rank=16", "learning_rate=3e-4"],
    ]  # fmt: skip
    assert str(found[1]) == "12.rank=8, learning_rate=3e-4" and len({each.key for each in found}) == 4


def test_a_value_with_commas_stands_in_quotes() -> None:
    assert Swept.read('trigger="a, b",c').values == ("a, b", "c")
    assert Swept.read("prompt=x=y").values == ("x=y",)


def test_the_key_is_that_of_the_run_whatever_is_swept_beside() -> None:
    one, _ = trials(b"{}", ["3.steps=5"], [Swept.read("rank=8,16")])
    again, *_ = trials(b"{}", ["3.steps=5"], [Swept.read("rank=8,16,32")])
    other, *_ = trials(b"{}", ["3.steps=6"], [Swept.read("rank=8,16")])
    changed, *_ = trials(b"{ }", ["3.steps=5"], [Swept.read("rank=8,16")])
    assert one.key == again.key and len({one.key, other.key, changed.key}) == 3


@pytest.mark.parametrize(
    "text, problem",
    [
        ("rank", "does not say which values"), ("rank=", "does not say which values"), ("=8", "does not say which"),
        ("rank=8,,9", "does not say which values"), ("rank=8,9,8", "has 8 twice"),
    ],
)  # fmt: skip
def test_what_is_no_sweep(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Swept.read(text)


def test_what_is_not_swept_is_one_run() -> None:
    assert combinations([]) == [[]]
    assert combinations(["a=1,2", "b=3"]) == [["a=1", "b=3"], ["a=2", "b=3"]]


def test_an_input_is_swept_once() -> None:
    with pytest.raises(ValueError, match="names rank twice"):
        trials(b"{}", [], [Swept.read("rank=8"), Swept.read("rank=16")])
