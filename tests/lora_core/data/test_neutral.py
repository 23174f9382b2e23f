"""Neutral prompts: what is taken, what is left out and said, and how much of a data set's words they cover."""

from __future__ import annotations

from collections import Counter

import pytest
from benchmarks._concepts import UNRELATED
from demo import shapes
from lora_loom.lora_core.data.neutral import MOST_PROMPTS, neutral
from lora_loom.lora_core.data.neutral_prompts import KINDS, shipped
from lora_loom.lora_core.families.table import FAMILIES, for_config_class


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_prompts_are_all_different_and_any_beginning_has_of_every_subject(kind: str) -> None:
    prompts = list(shipped(kind))
    assert len({prompt for _, prompt in prompts}) == len(prompts) >= 40
    found = neutral(kind, [])
    assert found.prompts[0] == "" and 40 <= len(found.prompts) <= MOST_PROMPTS and not found.left_out
    subjects = Counter(subject for subject, _ in list(shipped(kind))[:20])
    assert subjects.keys() == {subject for subject, _ in prompts} and max(subjects.values()) - min(subjects.values()) < 5


def test_every_family_has_a_kind():
    kinds = {row.neutral for row in FAMILIES} | {size.neutral for row in FAMILIES for size in row.sizes} - {""}
    assert kinds <= KINDS.keys()
    demo = for_config_class("WAN21_T2V").sized(lambda layer: 512)
    assert demo.neutral == "shapes" and for_config_class("WAN21_T2V").neutral == "pictures"


def test_the_demo_base_is_asked_nothing_that_it_is_examined_in():
    """Every shape, colour and pattern is asked for, about as often as any other."""
    prompts = [prompt for _, prompt in shipped("shapes")]
    assert not set(prompts) & set(UNRELATED)
    words = Counter(" ".join(neutral("shapes", []).prompts).split())
    for named in (shapes.SHAPES, shapes.COLOURS, shapes.PATTERNS[1:]):
        assert all(4 <= words[word] <= 20 for word in named), words


def test_own_prompts_come_first_and_class_words_and_words_of_the_captions_follow():
    captions = ["sks in a lighthouse with a photo", "a lighthouse and an anchor, sks"]
    found = neutral("pictures", ["sks"], ["statue"], captions, ["a green tractor"])
    assert found.prompts[:3] == ("", "a green tractor", "statue") and found.prompts[3] == "lighthouse, anchor"
    assert len(found.prompts) == MOST_PROMPTS
    assert found.words == 3 and found.covered == 3  # lighthouse, photo, anchor
    assert "people, animals, things, places, styles); 100% of the captions' words covered" in found.coverage()


def test_too_many_words_are_not_all_covered():
    found = neutral("pictures", [], (), [" ".join(f"{a}{b}xq" for a in "abcdefgh" for b in "abcdef")])
    assert found.words == 48 and found.covered == 24 and "; 50% of the captions' words" in found.coverage()
    assert "covered" not in neutral("pictures", ["dot"], (), ["dot", "the dot"]).coverage()


def test_what_holds_the_trigger_or_comes_again_is_left_out():
    own = ["A  green tractor", "a green tractor", "zorb on a hill", "ZORB", "zorbs"]
    found = neutral("pictures", ["zorb", ""], ["tractor"], (), own)
    assert found.prompts[:4] == ("", "A green tractor", "zorbs", "tractor")
    assert found.left_out == (
        "2 neutral prompts with the trigger were left out", "1 neutral prompt listed twice was left out",
    )  # fmt: skip


def test_half_of_them_are_shipped_whatever_a_person_adds():
    found = neutral("pictures", [], (), (), [f"prompt number {i}" for i in range(100)])
    assert len(found.prompts) == MOST_PROMPTS and dict(found.subjects)["your own"] == 23
    assert found.left_out == ("77 neutral prompts beyond half of 48 were left out",)


def test_a_list_that_is_all_trigger_is_empty():
    assert neutral("shapes", ["a", "an"]).empty and not neutral("shapes", ["background"], (), (), ["red"]).empty
