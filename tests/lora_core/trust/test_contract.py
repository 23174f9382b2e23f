"""Contracts: what is written is read again, and whatever strangers wrote is read as far as it goes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.files.lineage import CONTRACT
from lora_core.files.permissions import USES, Permissions
from lora_core.trust.contract import KINDS, ORIGINS, Contract, Outcome, Pictures, contract_of, is_air, on_one_line, read

HASH = "ab" * 32
FULL = Contract(
    concept="ink wash of harbours", kind="style", trigger="inkwash", changes="line and wash", leaves_alone="faces",
    base="sdxl.safetensors", base_sha256=HASH, strength=0.8, licence="CC-BY-4.0",
    permissions=Permissions(False, ("Image",), True, False), air="urn:air:sdxl:lora:civitai:328553@368189",
    author="Ada", contact="ada@example.org", origins=("own work", "with consent"), real_person=False,
    living_artist=False, pictures=Pictures("cd" * 32, 12, {"TDM reservation: 1": 2}),
    tested=Outcome("2026-11-30", 3, 2, "ef" * 32, {"neutral": 0.12}, samples=8, near=0, strength=0.8),
)  # fmt: skip

texts = st.text(max_size=40).map(on_one_line)
bits = st.sampled_from([None, True, False])
hashes = st.sampled_from(["", HASH, "0" * 64])
permissions = st.builds(
    Permissions, bits, st.none() | st.sets(st.sampled_from(USES)).map(lambda each: tuple(u for u in USES if u in each)),
    bits, bits,
)  # fmt: skip
marks = st.dictionaries(texts.filter(bool), st.integers(1, 10**6), max_size=3)
tested = st.builds(
    Outcome, st.just("2026-11-30"), st.integers(0, 2**64 - 1), st.integers(1, 99), st.just(HASH),
    st.dictionaries(texts.filter(bool), st.floats(0, 1e6), max_size=3), st.none() | st.integers(0, 99),
    st.none() | st.integers(0, 99), st.floats(-20, 20),
)  # fmt: skip
contracts = st.builds(
    Contract, concept=texts, kind=st.sampled_from(["", *KINDS]), trigger=texts, changes=texts, leaves_alone=texts,
    base=texts, base_sha256=hashes, strength=st.none() | st.floats(0.01, 20), licence=texts, permissions=permissions,
    air=st.sampled_from(["", FULL.air]), author=texts, contact=texts, real_person=bits, living_artist=bits,
    origins=st.sets(st.sampled_from(ORIGINS)).map(lambda each: tuple(o for o in ORIGINS if o in each)),
    pictures=st.builds(Pictures, hashes, st.none() | st.integers(0, 10**6), marks), tested=st.none() | tested,
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip
fields = st.sampled_from(
    ["concept", "kind", "base", "strength", "license", "permissions", "air", "shows", "data", "tested", "from",
     "reserved", "date", "seed", "seeds", "content", "leakage", "sha256", "allowCommercialUse", "version"]
)  # fmt: skip
foreign = st.dictionaries(fields, values | st.dictionaries(fields, values, max_size=6), max_size=8)


@settings(max_examples=150, deadline=None)
@given(contracts)
def test_what_is_written_is_read_again(contract: Contract) -> None:
    text = contract.to_text()
    assert read(contract.table()) == contract == (contract_of({CONTRACT: text}) or Contract())
    assert json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":")) == text


@settings(max_examples=150, deadline=None)
@given(foreign)
def test_whatever_strangers_write_is_read_as_far_as_it_goes(table: dict) -> None:
    found = read(table)
    assert read(found.table()) == found
    assert len(found.to_text()) < 20_000
    assert contract_of({CONTRACT: json.dumps(table)}) in (found, None)


def test_the_full_one_has_the_names_of_the_page() -> None:
    table = FULL.table()
    assert table["version"] == 1 and table["license"] == "CC-BY-4.0" and table["permissions"]["allowNoCredit"] is False
    assert table["data"] == {
        "from": ["own work", "with consent"], "root": "cd" * 32, "pictures": 12, "reserved": {"TDM reservation: 1": 2},
    }  # fmt: skip
    assert table["tested"]["leakage"] == {"neutral": 0.12} and table["tested"]["near"] == 0
    assert Contract().table() == {"version": 1} and not Contract()


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", '{"version": 1}', "[" * 100_000, '{"concept": ' + '"x"' * 70_000, '{"concept": 7}']
)
def test_nothing_is_read_where_nothing_is(text: str) -> None:
    assert contract_of({CONTRACT: text}) is None


def test_a_text_of_a_stranger_turns_nothing_and_ends() -> None:
    found = read({"concept": "ink\n\u202eevil\x00 " + "x" * 10_000, "kind": "weapon", "strength": 1e300})
    assert found.concept.startswith("ink evil xxx") and len(found.concept) == 240
    assert (found.kind, found.strength) == ("", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "weapon"}, "style, character"), ({"origins": ("found",)}, "own work"),
        ({"base_sha256": "xyz"}, "64 hex"), ({"strength": 21.0}, "up to 20"), ({"strength": float("nan")}, "up to 20"),
        ({"air": "air:1"}, "urn:air"), ({"concept": "x" * 241}, "shorten it to 240"),
    ],
)  # fmt: skip
def test_a_value_without_room_is_named(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(FULL, **changes)


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("urn:air:sdxl:lora:civitai:328553@368189", True), ("urn:air:sd1:lora:civitai:1", True),
        ("urn:air:flux1:lora:huggingface:a/b@main:ink.safetensors", True), ("civitai:328553@368189", False),
        ("urn:air:sdxl:lora:civitai:1@2\n", False), ("urn:air:sdxl:lora:civitai:" + "1" * 300, False),
    ],
)  # fmt: skip
def test_air(text: str, sound: bool) -> None:
    assert is_air(text) == sound
