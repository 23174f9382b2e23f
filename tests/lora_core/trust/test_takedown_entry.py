"""A line of a takedown list says all of it, or is no entry; what it is signed with must fit."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.trust import ed25519
from lora_loom.lora_core.trust.takedown_entry import LONGEST, read, write

SAID = {"data_sha256": "ab" * 32, "reason": "likeness", "date": "2026-11-30", "issuer": "Ada"}
SECRET, TODAY = bytes(range(32)), date(2026, 12, 1)


def line(**changed: Any) -> bytes:
    return json.dumps({**SAID, **changed}).encode()


def test_a_line_is_read_as_it_was_written() -> None:
    written = write({**SAID, "content_sha256": "cd" * 32, "expires": "2027-11-30"}, SECRET)
    entry = read(written.encode())
    assert (entry.data, entry.content, entry.reason, entry.issuer) == ("ab" * 32, "cd" * 32, "likeness", "Ada")
    assert entry.fault(TODAY) == "" and len(entry.id) == 12
    assert entry.words() == "shows a real person who did not consent, says Ada since 2026-11-30"
    assert "'cursed'" in read(line(reason="cursed")).words()


def test_the_last_day_counts() -> None:
    entry = read(line(expires="2026-12-01"))
    assert entry.fault(TODAY) == "" and entry.fault(date(2026, 12, 2)) == "expired on 2026-12-01"


def test_a_signature_must_fit() -> None:
    signed = json.loads(write(SAID, SECRET))
    other = b64encode(ed25519.public_key(bytes(32))).decode()
    forged = [
        {"issuer": "Eve"}, {"data_sha256": "cd" * 32}, {"expires": "2030-01-01"}, {"key": other}, {"note": "more"},
        {"signature": ""}, {"signature": signed["signature"][:-4]}, {"signature": "x" * 88}, {"key": ""},
    ]  # fmt: skip
    for change in forged:
        assert read(json.dumps(signed | change).encode()).fault(TODAY) == "is badly signed", change
    spaced = json.dumps(dict(reversed(signed.items())), indent=None, separators=(" , ", " : ")).encode()
    assert read(spaced).fault(TODAY) == "" and read(spaced).id == read(json.dumps(signed).encode()).id


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not JSON"), (b"[]", "no table"), (b"7", "no table"), (line()[:-9], "not JSON"),
        (b"\xff" + line(), "not JSON"), (line(issuer=["Ada"]), "plain text"), (line(date="30.11.2026"), "not a day"),
        (line()[:-1] + b', "reason": "style"}', "there twice"), (line(reason=""), "does not say reason"),
        (line(issuer="a\nb"), "plain text"), (line(issuer="a" * 201), "at most 200"),
        (line(data_sha256="AB" * 32), "64 hex digits"), (line(data_sha256=7), "64 hex digits"),
        (line(data_sha256=""), "names no file"), (line(expires=20271130), "not a day"),
        (line(date="20261130"), "not a day"), (line(note=float("nan")), "not JSON"), (line(note=2**60), "not JSON"),
        (line(note="\ud800"), "not JSON"), (line(**{f"k{n}": "" for n in range(30)}), "at most 24 keys"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "not JSON|nested"), (line(note="x" * LONGEST), f"above {LONGEST}"),
    ],
)  # fmt: skip
def test_other_lines_are_no_entries(text: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read(text)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.dictionaries(st.text(max_size=8), st.text(max_size=8)).map(
    lambda more: json.dumps(SAID | more).encode()
))  # fmt: skip
def test_any_line_is_an_entry_or_a_sentence(text: bytes) -> None:
    try:
        entry = read(text)
    except ValueError as error:
        assert str(error)
    else:
        assert entry.fault(TODAY) in ("", "is badly signed") or entry.expires


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="does not say"):
        write({"data_sha256": "ab" * 32})
