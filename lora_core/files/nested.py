"""JSON inside the texts of a header, as strangers write it: whatever it is, what comes back can be worked with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import isfinite
from typing import Any

DEEPEST = 64  # tables and lists within each other; what is deeper is left out, and recursion is safe
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def value_of(text: str, whole: Callable[[str], Any] | None = None) -> Any:
    """Return the value of a JSON text; None for what is no JSON. In it numbers that no float holds, and what is too
    deep, are None, and halves of characters are question marks. `whole` reads whole numbers, of any length."""
    try:
        value = json.loads(text, parse_int=whole or _integer, parse_float=_number, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    _cut(value)
    if _SURROGATE.search(text):
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def table_of(text: str, whole: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Return the JSON table of a text, as `value_of`; an empty one where there is none."""
    found = value_of(text, whole)
    return found if isinstance(found, dict) else {}


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < 20 else None


def _number(text: str) -> float | None:
    number = float(text)
    return number if isfinite(number) else None


def _cut(value: Any) -> None:
    """Leave out what is too deep, level by level."""
    level = [value] if isinstance(value, (dict, list)) else []
    for depth in range(1, DEEPEST + 1):
        below = [
            (each, place, inner)
            for each in level
            for place, inner in (each.items() if isinstance(each, dict) else enumerate(each))
            if isinstance(inner, (dict, list))
        ]
        if depth == DEEPEST:
            for each, place, _ in below:
                each[place] = None
        level = [inner for _, _, inner in below]
