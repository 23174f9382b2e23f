"""The text of rows, both ways, and the stacks of other packs as rows."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from lora_loom.lora_core.files.names import alike, matching
from lora_loom.lora_core.files.words import trigger_words
from lora_loom.lora_core.stack import foreign_rows
from lora_loom.lora_core.stack.rows import Row, parse, strength_of

ESCAPED = {"%": "%25", ":": "%3A", "<": "%3C", ">": "%3E", "\n": "%0A", "\r": "%0D"}
CODE = re.compile("|".join(ESCAPED.values()))
CODE_IN_WORD = re.compile(f"{CODE.pattern}|%2C")


def to_text(rows: Iterable[Row]) -> str:
    """One row to a line, as the field writes them; `parse` reads back the same rows."""
    return "\n".join(f"<lora:{':'.join(parts(row))}>" for row in rows)


def parts(row: Row) -> Iterator[str]:
    yield escaped(row.name)
    yield number(row.strength)
    if row.text_strength != row.strength:
        yield number(row.text_strength)
    if row.blocks:
        yield f"blocks={escaped(row.blocks)}"
    if row.start != 0.0:
        yield f"start={number(row.start)}"
    if row.end != 1.0:
        yield f"end={number(row.end)}"
    if row.words is not None:
        yield f"words={','.join(escaped(word, CODE_IN_WORD).replace(',', '%2C') for word in row.words)}"
    if not row.on:
        yield "off"


def number(value: float) -> str:
    """As short as it can be read back."""
    return repr(float(value)).removesuffix(".0")


def escaped(text: str, code: re.Pattern[str] = CODE) -> str:
    """Without what would end a part; a percent sign only where it would be read as such a code."""
    text = code.sub(lambda code: "%25" + code[0][1:], text)
    return re.sub(r"[:<>\n\r]", lambda found: ESCAPED[found[0]], text)


def told(row: Row) -> dict[str, Any]:
    """All that a row says, beyond the three that compare as a tuple."""
    return {"entry": tuple(row), **vars(row)}


def row(name: str, strength: float = 1.0, text: float | None = None, **more: Any) -> Row:
    return Row(name, strength, strength if text is None else text, **more)


CASES = {
    "<lora:ink>": [row("ink")],
    "<lora:styles/ink:0.8>": [row("styles/ink", 0.8)],
    "<lora:styles/ink:0.8:1.0>": [row("styles/ink", 0.8, 1.0)],
    "<lora:styles\\ink.safetensors:-.5:+0>": [row("styles\\ink.safetensors", -0.5, 0.0)],
    "<LORA:a:1:off>": [row("a", on=False)],
    "<lora:a:on>": [row("a")],
    "<lora:a:0.8:1:blocks=IN=0.5,MID=1:end=.8>": [row("a", 0.8, 1.0, blocks="IN=0.5,MID=1", end=0.8)],
    "<lora:a:start=0.2:blocks=>": [row("a", start=0.2)],
    "<lora:a:unet=0.5:te=0>": [row("a", 0.5, 0.0)],
    "<lora:a:0.7:te=0>": [row("a", 0.7, 0.0)],
    "a cat, (ink:1.2) <lora:a:0.5>, <lyco:b> masterpiece": [row("a", 0.5), row("b")],
    "one\r\n# <lora:off:1>\n  #<lora:x>\n<lora:on it is:2>\n": [row("on it is", 2.0)],
    "<lora:50%:1>": [row("50%")],
    "<lora:a%2Cb>": [row("a%2Cb")],
    "<lora:a:words= sks , ink wash:off>": [row("a", words=("sks", "ink wash"), on=False)],
    "<lora:a:words=>": [row("a", words=())],
    "<lora:a:words=one%2C two%252C,(b%3A1.2)>": [row("a", words=("one, two%2C", "(b:1.2)"))],
    "<lora:a%3Ab%253A:1>": [row("a:b%3A")],
    "": [],
    "<b>no</b> <lora> lora:a:1": [],
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_parsed(text: str) -> None:
    assert [told(found) for found in parse(text)] == [told(wanted) for wanted in CASES[text]]


def test_what_is_printed_is_read_back() -> None:
    dice, letters = random.Random(0), "ab. %:<>\\/#\n\r\u2028\u00e9,=0123456789ABCDEF"
    for _ in range(500):
        start = dice.choice([0.0, 0.1, 0.5])
        name = "n" + "".join(dice.choices(letters, k=dice.randrange(12)))
        strengths = [dice.choice([0.0, 1.0, -1.0, dice.uniform(-20, 20), 1e-7]) for _ in range(2)]
        blocks = dice.choice(["", "IN=0.5,MID=1", "a:b>c"])
        words = dice.choice([None, (), tuple("n" + "".join(dice.choices(letters, k=5)).strip() for _ in range(2))])
        end, on = dice.choice([1.0, 0.75]), dice.random() < 0.5
        made = [Row(name, *strengths, blocks, start, end, on, words)] * dice.randrange(3)
        assert [told(found) for found in parse(to_text(made))] == [told(wanted) for wanted in made]


def test_printed_short() -> None:
    assert to_text([row("a", 0.8), row("b", 1.0, 0.5, on=False)]) == "<lora:a:0.8>\n<lora:b:1:0.5:off>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fine\n<lora:a:x>", "line 2, <lora:a:x>: a strength is 'x'; write a number from -20 to 20"),
        ("<lora:a:21>", "from -20 to 20"),
        ("<lora:a:nan>", "from -20 to 20"),
        ("<lora:a:1:1:1>", "3 strengths are given; write at most two"),
        ("<lora:a:1", "has no closing >"),
        ("<lora::1>", "has no file name"),
        ("<lora: :1>", "has no file name"),
        ("<lora:a:off:1>", "'1' is after a named part"),
        ("<lora:a:start=5>", "start is '5'; write the share of sampling, from 0 to 1"),
        ("<lora:a:start=0.5:end=0.5>", "start 0.5 is not below end 0.5"),
        ("<lora:a:lbw=ALL>", "lbw= is unknown; the known parts are off, blocks="),
        ("<lora:a:off:off>", "off is given twice"),
        ("<lora:a:words=a:words=b>", "words is given twice"),
    ],
)
def test_faults_name_the_line(text: str, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert words in str(refused.value) and str(refused.value).startswith("line ") and "\n" not in str(refused.value)


def test_a_row_is_an_entry_of_other_packs_and_can_be_copied() -> None:
    full = Row("a", 0.5, 1.0, "IN=1", 0.1, 0.9, False, ("sks",))
    name, strength, text = full
    assert (name, strength, text) == full == ("a", 0.5, 1.0) and len(full) == 3
    for again in (copy.deepcopy(full), pickle.loads(pickle.dumps(full)), full.renamed("a"), full.changed()):
        assert told(again) == told(full)


def test_a_row_that_is_changed_keeps_the_rest() -> None:
    full = Row("a", 0.5, 1.0, "IN=1", 0.1, 0.9, False)
    assert told(full.changed(strength=0.2, text_strength=0.3)) == told(Row("a", 0.2, 0.3, "IN=1", 0.1, 0.9, False))
    assert told(full.changed(name="b", on=True)) == told(Row("b", 0.5, 1.0, "IN=1", 0.1, 0.9))
    with pytest.raises(TypeError):
        full.changed(strenght=1.0)


# -- stacks of other packs ---------------------------------------------------------------------------------------------

A = ("a.safetensors", 0.5, 1.0)
ENTRIES: list[tuple[Any, list[tuple[str, float, float]], str]] = [
    (A, [A], ""),
    (list(A), [A], ""),
    ((*A, "all", "all"), [A], "lora_stack entry 1, a.safetensors: 'all', 'all' is ignored, because it is unknown here"),
    (("sub\\a.safetensors", 0.5, 1.0), [("sub\\a.safetensors", 0.5, 1.0)], ""),
    (("a.safetensors", "0.5", None), [("a.safetensors", 0.5, 0.5)], ""),
    (("None", 1.0, 1.0), [], "lora_stack entry 1 is ignored: it has no file name"),
    ((None, 1.0, 1.0), [], "lora_stack entry 1 is ignored: it has no file name"),
    (("None", None, None), [], "lora_stack entry 1 is ignored: it has no file name"),
    ({"on": True, "lora": "a.safetensors", "strength": 0.5, "strengthTwo": 1.0}, [A], ""),
    ({"on": False, "lora": "a.safetensors", "strength": 0.5}, [], "entry 1 is ignored: a.safetensors is switched off"),
    ({"name": "a.safetensors", "strength": 0.5, "clipStrength": 1.0, "active": True}, [A], ""),
    ({"name": "a.safetensors", "lora": {"x": 1}, "strength": 0.5, "clip_strength": None, "conflict_mode": "all"},
     [("a.safetensors", 0.5, 0.5)],
     "lora_stack entry 1, a.safetensors: conflict_mode is ignored, because it is unknown here"),
    ({"lora_name": "a.safetensors", "model_strength": 0, "clip_strength": 1}, [("a.safetensors", 0.0, 1.0)], ""),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "rows", "note"), ENTRIES)
def test_entries_of_other_packs(entry: Any, rows: list, note: str) -> None:
    found, notes = foreign_rows.read([entry])
    assert found == rows and all(isinstance(each, Row) for each in found)
    assert (note in notes[0] and len(notes) == 1) if note else notes == []


def test_our_own_rows_keep_what_they_know() -> None:
    ours = Row("a", 1.0, 1.0, "IN=0", 0.5, 1.0)
    assert told(foreign_rows.read((ours,))[0][0]) == told(ours)
    assert foreign_rows.read(None) == foreign_rows.read([]) == ([], [])


@pytest.mark.parametrize(
    "entry",
    ["abc", ("a",), 3, None, {"name": "a"}, {"strength": 1}, ("a", "x", 1), ("a", float("nan"), 1), ("a", 99, 1)],
)
def test_what_is_no_row_is_refused(entry: Any) -> None:
    with pytest.raises(ValueError, match="lora_stack entry 2 is "):
        foreign_rows.read([A, entry])


# -- names and words ---------------------------------------------------------------------------------------------------

NAMES = ["art/ink.safetensors", "old\\ink.safetensors", "art/oil.v2.safetensors", "oil.safetensors"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("art/ink.safetensors", NAMES[:1]),
        ("art\\ink", NAMES[:1]),
        ("old/ink", NAMES[1:2]),
        ("ink", NAMES[:2]),
        ("ink.safetensors", NAMES[:2]),
        ("oil.v2", NAMES[2:3]),
        ("oil", NAMES[3:]),
        ("new/oil", []),
        ("il", []),
    ],
)
def test_names_without_suffix_or_folder(wanted: str, found: list[str]) -> None:
    assert matching(wanted, NAMES) == found


def test_names_that_are_near() -> None:
    assert alike("art/Oli", NAMES) == ["oil.safetensors"] and alike("zebra", NAMES) == []


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, ()),
        ({"modelspec.trigger_phrase": "sks, Ink ,SKS", "ss_tag_frequency": '{"a": {"b": 1}}'}, ("sks", "Ink")),
        ({"trained_words": '["sks, ink", "Oil"]'}, ("sks", "ink", "Oil")),
        ({"trained_words": "sks, ink"}, ("sks", "ink")),
        ({"ss_tag_frequency": '{"10_a": {"sks": 20, "solo": 19}, "b": {"oil": 3, "sks": 3}}'}, ("sks", "oil")),
        ({"ss_tag_frequency": '{"a": {"a dog": 1, "a cat": 1, "a bird": 1, "a cow": 1}}'}, ()),
        ({"ss_tag_frequency": "[" * 100_000}, ()),
        ({"ss_tag_frequency": '{"a": {"b": "x"}, "c": [], "d": {}}'}, ()),
        ({"ss_tag_frequency": "not json"}, ()),
    ],
)  # fmt: skip
def test_trigger_words(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert trigger_words(metadata) == words


@pytest.mark.parametrize("number", [10**400, -(10**5000), "9" * 400, float("nan"), "9" * 5000], ids=range(5))
def test_numbers_beyond_all_are_a_sentence(number: object) -> None:
    with pytest.raises(ValueError, match="the strength is .*; write a number from -20 to 20") as refused:
        strength_of(number, "the strength")
    assert len(str(refused.value)) < 300
