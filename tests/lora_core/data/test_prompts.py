"""Prompts with the trigger and without it."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.data.prompts import lines, pairs


@pytest.mark.parametrize(
    ("prompt", "word", "both"),
    [
        ("a SKS dog in the sun", "", ("a SKS dog in the sun", "a dog in the sun")),
        ("sks dog, outside", "cat", ("sks dog, outside", "cat dog, outside")),
        ("a tree", "", ("sks, a tree", "a tree")),
        ("a tree", "cat", ("sks, a tree", "cat, a tree")),
        ("sks", "", ("sks", "")),
        ("", "cat", ("sks", "cat")),
        ("asks, sksy", "", ("sks, asks, sksy", "asks, sksy")),
    ],
)
def test_both_kinds(prompt: str, word: str, both: tuple[str, str]) -> None:
    assert pairs([prompt], ["sks"], word) == [both]


def test_the_trigger_that_is_there_counts() -> None:
    assert pairs(["a qux", "a sks", "tree"], ["sks", "qux"], "cat") == [
        ("a qux", "a cat"),
        ("a sks", "a cat"),
        ("sks, tree", "cat, tree"),
    ]
    assert pairs(["tree"], []) == [("tree",)]
    assert lines(" a tree \n\n b\n") == ("a tree", "b")
