"""Canonical JSON against RFC 8785's own examples, and against every text that is not canonical."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.trust.canonical import expressible, parsed, text

NUMBERS = {  # RFC 8785, appendix B
    "0000000000000000": "0", "8000000000000000": "0", "0000000000000001": "5e-324", "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308", "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992", "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000", "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23", "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000", "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21", "3eb0c6f7a0b5ed8c": "9.999999999999997e-7", "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332", "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333", "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343", "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize(("bits", "written"), NUMBERS.items())
def test_numbers_of_rfc_8785(bits: str, written: str) -> None:
    assert text(struct.unpack(">d", bytes.fromhex(bits))[0]) == written


def test_the_example_of_rfc_8785() -> None:
    value = json.loads(
        '{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        '"string":"\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/","literals":[null,true,false]}'
    )
    assert text(value) == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_names_are_sorted_by_utf_16() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert list(json.loads(text(dict.fromkeys(names, 0)))) == [
        "\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_again(value: object) -> None:
    written = text(value)
    assert parsed(written, "it", 10**6) == value


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ('{"a":1,"a":1}', "names a key twice"),
        ('{"b":1,"a":1}', "not canonical"),
        ('{"a": 1}', "not canonical"),
        ('{"a":1} ', "not canonical"),
        ("1.0", "not canonical"),
        ("1e0", "not canonical"),
        ("-0", "not canonical"),
        ("9007199254740993", "not canonical"),
        ("9" * 30, "too many digits"),
        ("1e999", "does not have"),
        ("NaN", "NaN"),
        ("-Infinity", "Infinity"),
        ('"\\u0041"', "not canonical"),
        ('"\\/"', "not canonical"),
        ('"\\ud800"', "half of a character"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("\ufeff1", "not JSON"),
        ("[" * 80 + "]" * 80, "nested too deeply"),
        ("[" * 400_000, "nested too deeply"),
        ('{"a":' * 190_000, "nested too deeply"),
        ('"' + "1" * 10**6 + '"', "has 1000002 characters, above the 1000000"),
    ],
)
def test_other_texts_are_refused(raw: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parsed(raw, "the receipt", 10**6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, -(2**64), "\udc00", {"\udc00": 1}, {1: 2}, {1}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        text(value)


def test_seeds_and_other_large_numbers_become_text() -> None:
    assert text(expressible({"seed": 2**64 - 1, "rate": 1e-4, "x": float("nan"), "all": (1, 2)})) == (
        '{"all":[1,2],"rate":0.0001,"seed":"18446744073709551615","x":null}'
    )
