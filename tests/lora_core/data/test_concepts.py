"""Concepts of a data set: which there are, which triggers cannot be told apart, and what each is held to."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.data.concepts import MOST_CAPTIONS, kept_apart, nameless, of_concept, overlap, triggers
from lora_loom.lora_core.data.dataset import Dataset, Options, combined
from lora_loom.lora_core.data.reading import from_tensors


def named(trigger: str, *captions: str, **options) -> Dataset:
    return from_tensors(torch.rand(len(captions), 32, 32, 3), captions, trigger, 32, 16, 1, Options(**options))


def test_sets_of_one_trigger_show_one_concept() -> None:
    sets = named("sks", "a"), named("ohwx cat", "b"), named("SKS", "c"), named("dog", "d", class_images=True)
    data = combined(sets)
    assert triggers(data) == ("sks", "ohwx cat")
    assert of_concept(data, "sks") == [0, 2] and of_concept(data, "ohwx cat") == [1]
    assert triggers(combined([named("", "a style"), sets[0]])) == ("sks",)


def test_a_trigger_within_another_is_named_with_it() -> None:
    assert overlap(("sks", "ohwx")) == "" == overlap(("sks", "sksy")) == overlap(("sks",))
    assert overlap(("ohwx", "sks dog", "Sks")) == (
        "the trigger Sks stands in the trigger sks dog, so that a caption with sks dog has both"
    )


def test_captions_lose_their_triggers() -> None:
    sets = [named("sks", "sks on a (beach)", "sks"), named("ohwx", "in a car, ohwx", "ohwx and sks", "a bus")]
    data = combined([*sets, named("qux", "a tree"), named("dog", "a dog", class_images=True)])
    told = (r"on a \(beach\)", "in a car", "a bus", "a tree")
    assert nameless(data) == told, "as text encoders are given them, none with a trigger, none that is empty"
    many = combined([named("sks", *(f"number {i}" for i in range(100))), named("ohwx", "ohwx")])
    assert len(nameless(many)) == MOST_CAPTIONS and nameless(many)[::47] == ("number 0", "number 97")


def test_being_kept_apart_is_told_by_the_fingerprint_alone() -> None:
    data = combined([named("sks", "sks on a beach"), named("ohwx", "ohwx in a car")])
    apart = kept_apart(data)
    assert apart.examples == data.examples and apart.apart and not data.apart
    assert apart.fingerprint() != data.fingerprint()
    assert combined([apart, named("qux", "a tree")]).apart, "of those that were combined before"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([("sks", "a dog")], "there is only one trigger word, sks; give each concept its own"),
        ([("sks", "a dog"), ("SKS", "a cat")], "there is only one trigger word, sks"),
        ([("sks", "a dog"), ("", "a cat")], "the set connected images has no trigger word; write one"),
        ([("sks", "a dog"), ("sks cat", "b")], "the trigger sks stands in the trigger sks cat, .* share no word"),
        ([("sks", "sks"), ("ohwx", "ohwx")], "no caption says more than its trigger; write captions"),
    ],
)
def test_what_cannot_be_kept_apart_is_refused(sets: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*or switch off keep_apart"):
        kept_apart(combined([named(*each) for each in sets]))
