"""Rows of a stack: what each LoRA file is asked to do, and how a text says it.

The text is what the field writes into prompts, `<lora:styles/ink:0.8:1.0>`: the name, the strength on the model and
the one on the text encoders, which is the model's when left out. Named parts may follow: `off`, `blocks=IN=0.5,MID=1`,
`start=0.2`, `end=0.8`, `words=sks,ink wash`, `mask=1` (inside that mask; `mask=-1` outside of it), and what A1111 calls
the strengths, `unet=0.8` and `te=1`. Words around the tags are passed over, and so are lines that begin with `#`.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

from ..files.faults import quote
from .regions import MASKS, Region

LIMIT = 20.0  # of strengths, either way
NONE = "None"  # what a row of a list is called that names no file

_FIELDS = ("name", "strength", "text_strength", "blocks", "start", "end", "on", "words", "mask", "region")
_TAG = re.compile(r"<(?:lora|lyco):([^<>\n]*)(>?)", re.IGNORECASE)
_CODE = re.compile("%25|%3A|%3C|%3E|%0A|%0D")
_CODE_IN_WORD = re.compile(f"{_CODE.pattern}|%2C")
_KNOWN = "off, blocks=, start=, end=, words=, mask=, unet= and te="


class Row(tuple):
    """A LORA_STACK entry as other packs unpack it, `(name, strength, text_strength)`, that knows more.

    `blocks` is the per-block strength text ("" is 1 everywhere); `start` and `end` are shares of sampling in 0..1;
    `words` are its trigger words, None for those that the file names. `mask` is the number of the mask that it is on
    inside of, negative for outside, 0 for everywhere, and `region` what that mask is, once it is known. A row that is
    not `on` is kept in the list of rows and nowhere else.
    """

    blocks: str
    start: float
    end: float
    on: bool
    words: tuple[str, ...] | None
    mask: int
    region: Region | None

    def __new__(
        cls,
        name: str,
        strength: float,
        text_strength: float,
        blocks: str = "",
        start: float = 0.0,
        end: float = 1.0,
        on: bool = True,
        words: tuple[str, ...] | None = None,
        mask: int = 0,
        region: Region | None = None,
    ) -> Row:
        row = super().__new__(cls, (name, strength, text_strength))
        row.blocks, row.start, row.end, row.on, row.words = blocks, start, end, on, words
        row.mask, row.region = mask, region
        return row

    def __getnewargs__(self) -> tuple:
        """Return what a copy is made of."""
        return tuple(getattr(self, field) for field in _FIELDS)

    @property
    def name(self) -> str:
        return self[0]

    @property
    def strength(self) -> float:
        return self[1]

    @property
    def text_strength(self) -> float:
        return self[2]

    @property
    def active(self) -> bool:
        """Return whether it asks for anything."""
        return self.on and self.name not in ("", NONE) and bool(self.strength or self.text_strength)

    @property
    def plain(self) -> bool:
        """Return whether name and strengths say all of it, so that nothing is lost where others read it as a tuple."""
        return not self.blocks.strip() and (self.start, self.end, self.mask) == (0.0, 1.0, 0)

    def changed(self, **changes: Any) -> Row:
        """Return a row that is this one but for the fields that are given."""
        return Row(**{field: getattr(self, field) for field in _FIELDS} | changes)

    def renamed(self, name: str) -> Row:
        return self.changed(name=name)


def parse(text: str) -> list[Row]:
    """Return the rows of a text, in order, those that are off included. Raises ValueError with the line of the first
    fault."""
    return [
        _row(tag, number)
        for number, line in enumerate(text.split("\n"), 1)
        if not line.lstrip().startswith("#")
        for tag in _TAG.finditer(line)
    ]


def strength_of(value: Any, what: str) -> float:
    """Return a strength as a number. Raises ValueError when it is none, or above LIMIT either way."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not isfinite(number) or abs(number) > LIMIT:
        raise ValueError(f"{what} is {_shown(value)}; write a number from -{LIMIT:g} to {LIMIT:g}")
    return number


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return quote(value) if isinstance(value, str) else repr(value)


def checked(row: Row) -> Row:
    """Return the row itself. Raises ValueError as `strength_of`."""
    for strength, what in zip(row[1:], ("the strength", "the text strength"), strict=True):
        strength_of(strength, f"{what} of {row.name}")
    return row


def _row(tag: re.Match[str], line: int) -> Row:
    try:
        if not tag[2]:
            raise ValueError("it has no closing >")
        name, *parts = tag[1].split(":")
        if not name.strip():
            raise ValueError("it has no file name")
        return _filled(_plain(name), parts)
    except ValueError as error:
        raise ValueError(f"line {line}, {tag[0][:120]}: {error}") from None


def _filled(name: str, parts: list[str]) -> Row:
    strengths: list[float] = []
    named: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.strip().partition("=")
        key = key.strip().lower()
        if equals or key in ("on", "off"):
            if key in named:
                raise ValueError(f"{key} is given twice")
            named[key] = _value(key, value.strip())
        elif named:
            raise ValueError(f"{part!r} is after a named part; write strengths directly after the name")
        else:
            strengths.append(strength_of(part.strip(), "a strength"))
    if len(strengths) > 2:
        raise ValueError(f"{len(strengths)} strengths are given; write at most two, for the model and the text encoder")
    strength = named.pop("unet", strengths[0] if strengths else 1.0)
    text = named.pop("te", strengths[1] if len(strengths) > 1 else strength)
    row = Row(name, strength, text, **{key: value for key, value in named.items() if key not in ("on", "off")},
              on="off" not in named)  # fmt: skip
    if row.start >= row.end:
        raise ValueError(f"start {row.start:g} is not below end {row.end:g}")
    return row


def _value(key: str, text: str) -> object:
    if key in ("on", "off"):
        return True
    if key == "blocks":
        return _plain(text)
    if key in ("unet", "te"):
        return strength_of(text, key)
    if key in ("start", "end"):
        return _share(key, text)
    if key == "mask":
        return _mask(text)
    if key == "words":
        return tuple(_plain(word.strip(), _CODE_IN_WORD) for word in text.split(",") if word.strip())
    raise ValueError(f"{key}= is unknown; the known parts are {_KNOWN}")


def _share(key: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{key} is {text!r}; write the share of sampling, from 0 to 1")
    return share


def _mask(text: str) -> int:
    number = int(text) if re.fullmatch(r"-?\d{1,3}", text) else 0
    if not 1 <= abs(number) <= MASKS:
        raise ValueError(
            f"mask is {text!r}; write the number of a mask, from 1 to {MASKS}, or -1 for outside of mask 1"
        )
    return number


def _plain(text: str, code: re.Pattern[str] = _CODE) -> str:
    return code.sub(lambda code: chr(int(code[0][1:], 16)), text)
