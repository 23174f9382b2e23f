"""Makes of texts what the browser does when it sends them: choices in braces, and names between % signs."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import Any

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
_NAME = re.compile("%([^%]+)%")
_DATE = re.compile("dd?|MM?|hh?|mm?|ss?|yyyy|yyy|yy")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')


def dynamic(text: str, draw: Random) -> str:
    """Return a text with one of each `{these|those}` chosen, without comments. A backslash keeps `{`, `}` and `|`."""
    text = _COMMENT.sub("", text)
    made, at = "", 0
    while at < len(text):
        if text[at] == "{":
            choices, at = _choices(text, at + 1)
            made += dynamic(draw.choice(choices), draw)
        else:
            end = at + (2 if text[at] == "\\" else 1)
            made += text[at:end]
            at = end
    return re.sub(r"\\([{}|])", r"\1", made)


def _choices(text: str, at: int) -> tuple[list[str], int]:
    """The choices of a brace that opened before `at`, and where the text goes on behind it."""
    choices, depth = [""], 0
    while at < len(text):
        letter = text[at : at + 2] if text[at] == "\\" else text[at]
        at += len(letter)
        if letter == "}" and not depth:
            break
        depth += (letter == "{") - (letter == "}")
        if letter == "|" and not depth:
            choices.append("")
        else:
            choices[-1] += letter
    return choices, at


def replaced(text: str, now: datetime, value_of: Callable[[str, str], Any]) -> str:
    """Return a text with `%date:yyyy-MM-dd%` and `%node.field%` replaced, as names of files. value_of: of a node and a
    field; raises KeyError for what is not there, which stays as it is written."""

    def found(match: re.Match[str]) -> str:
        name = match[1]
        node, dot, field = name.partition(".")
        if not dot or "." in field:
            return _dated(name[5:], now) if node.startswith("date:") else match[0]
        try:
            return _UNSAFE.sub("_", _written(value_of(node, field)))
        except KeyError:
            return match[0]

    return _NAME.sub(found, text)


def _dated(form: str, now: datetime) -> str:
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def written(match: re.Match[str]) -> str:
        letters = match[0]
        if letters[0] == "y":
            return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(letters, letters)
        return str(parts[letters[0]]).zfill(len(letters))

    return _DATE.sub(written, form)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e21 else repr(value)
    return "" if value is None else str(value)


def number(value: float) -> str:
    """A number as short as it can be read back, of six places at most."""
    rounded = round(float(value), 6)
    return f"{rounded:.0f}" if rounded.is_integer() else repr(rounded)
