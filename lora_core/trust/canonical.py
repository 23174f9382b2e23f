"""Canonical JSON: one text for one value, by RFC 8785 (JCS), so that a hash or a signature of the text is of the value.

Names are sorted by their UTF-16 code units, nothing is escaped that need not be, and numbers are written as ECMAScript
writes a double. A whole number that no double holds exactly is no value here: it is written as text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 72  # tables and lists within each other
_EXACT = 2**53 - 1
_SURROGATE = re.compile("[\ud800-\udfff]")


def text(value: Any) -> str:
    """Return the canonical JSON of None, bools, numbers, text, lists, tuples and mappings by text. Raises ValueError
    for what has none: NaN, infinity, whole numbers beyond 2^53 - 1, halves of characters, what is nested too deeply."""
    return _text(value, DEEPEST)


def parsed(raw: str, what: str, most: int) -> Any:
    """Return the value of a canonical text of at most `most` characters. Raises ValueError, beginning with `what`, for
    any other text: one that names a key twice, is nested too deeply, or is spelled in another way."""
    if len(raw) > most:
        raise ValueError(f"{what} has {len(raw)} characters, above the {most} allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _UnfitError("names a key twice")
        return found

    try:
        value = json.loads(raw, object_pairs_hook=unique, parse_int=_whole, parse_constant=_no_number)
        again = text(value)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except _UnfitError as fault:
        raise ValueError(f"{what} {fault}") from None
    except ValueError:
        raise ValueError(f"{what} is not JSON") from None
    if again != raw:
        raise ValueError(f"{what} is not canonical JSON (RFC 8785)")
    return value


def expressible(value: Any) -> Any:
    """Return a value of JSON in a form that `text` takes: whole numbers beyond 2^53 - 1 as text, and None for NaN,
    infinity and what is no JSON."""
    if isinstance(value, Mapping):
        return {str(key): expressible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [expressible(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _EXACT else str(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


class _UnfitError(ValueError):
    """Says what is wrong with a text or value, after its name."""


def _text(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        if abs(value) > _EXACT:
            raise _UnfitError(f"holds the whole number {value}, which a double cannot; write it as text")
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if not depth:
        raise _UnfitError("is nested too deeply")
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_text(item, depth - 1) for item in value)}]"
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _UnfitError(f"holds a {type(value).__name__}, which JSON does not have")
    names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(f"{_quoted(name)}:{_text(value[name], depth - 1)}" for name in names) + "}"


def _quoted(value: str) -> str:
    if _SURROGATE.search(value):
        raise _UnfitError("holds half of a character")
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """Write a double as ECMAScript's Number::toString does: the fewest digits that name it, and no exponent from 1e-6
    up to below 1e21."""
    if not math.isfinite(value):
        raise _UnfitError(f"holds the number {value}, which JSON does not have")
    if value == 0:
        return "0"
    sign, digits, point = _digits(value)
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def _digits(value: float) -> tuple[str, str, int]:
    """Return the sign, the fewest digits that name a double, and where its point is: value = 0.digits * 10^point."""
    shortest = repr(abs(value))
    mantissa, _, exponent = shortest.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, point = whole + fraction, len(whole) + int(exponent or 0)
    stripped = digits.lstrip("0")
    return "-" * (value < 0), stripped.rstrip("0"), point - (len(digits) - len(stripped))


def _whole(digits: str) -> int | float:
    """A whole number that only its double is meant by, as 1e20 is written, is that double."""
    if len(digits) > 24:
        raise _UnfitError("holds a number of too many digits")
    number = int(digits)
    return number if abs(number) <= _EXACT else float(number)


def _no_number(name: str) -> None:
    raise _UnfitError(f"holds {name}, which JSON does not have")
