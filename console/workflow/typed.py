"""Whether a value is one that a field takes: its type, its range, and what it may be chosen from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from .fields import COMBO, DYNAMIC_COMBO, Field

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_JSON = ("RANGE", "CURVE", "BOUNDING_BOX", "BOUNDING_BOXES", "COLORS")
_OPEN = ("remote", "lora_files")  # a combo whose list is not all that it takes; so is one that files are uploaded to
_WHOLE = re.compile(r"[+-]?\d+")
_SHOWN = 8  # of a list of choices


def read(made: Field, text: str) -> Any:
    """Return the value that a text means for a field. Raises ValueError with what it takes instead."""
    if made.kind in ("INT", "FLOAT"):
        return _in_range(made, _number(made.kind, text))
    if made.kind == "BOOLEAN":
        if text.strip().lower() not in _WORDS:
            raise ValueError(f"is {text!r}; write true or false")
        return _WORDS[text.strip().lower()]
    if made.kind in (COMBO, DYNAMIC_COMBO):
        return _choice(made, text)
    return _parsed(text) if made.kind in _JSON else text


def check(made: Field, value: Any) -> None:
    """Raises ValueError when the server would refuse a value of a prompt, or take something else for it."""
    if isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    if made.kind in ("INT", "FLOAT"):
        _in_range(made, _number(made.kind, value))
    elif made.kind in (COMBO, DYNAMIC_COMBO) and not is_open(made):
        for each in value if isinstance(value, list) else [value]:
            if each not in made.choices:
                raise ValueError(refused(made, each))


def is_open(made: Field) -> bool:
    return any(key in _OPEN or (key.endswith("_upload") and on) for key, on in made.options.items())


def _number(kind: str, value: Any) -> float:
    try:
        number = int(value) if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) else value
        number = number if isinstance(number, int) else float(number)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (kind == "INT" and number != int(number)):
        raise ValueError(f"is {_short(value)}; write a {'whole ' if kind == 'INT' else ''}number")
    return int(number) if kind == "INT" else float(number)


def _in_range(made: Field, number: float) -> float:
    least, most = made.options.get("min", -math.inf), made.options.get("max", math.inf)
    if not least <= number <= most:
        span = f"from {least} to {most}" if math.isfinite(least) and math.isfinite(most) else ""
        span = span or (f"of {least} or more" if math.isfinite(least) else f"of {most} or less")
        raise ValueError(f"is {number}; write a number {span}")
    return number


def _choice(made: Field, text: str) -> Any:
    for choice in made.choices:
        if str(choice) == text:
            return choice
    if is_open(made):
        return text
    raise ValueError(refused(made, text))


def refused(made: Field, value: Any) -> str:
    """Return what is wrong with a choice: the list when it is short, else what it could mean."""
    choices = [str(choice) for choice in made.choices]
    if not choices:
        return f"is {_short(value)}, and ComfyUI lists nothing to choose from"
    if len(choices) <= _SHOWN:
        return f"is {_short(value)}; choose one of {', '.join(choices)}"
    meant = nearest(str(value), choices)
    none = f"is {_short(value)}, which is none of {len(choices)} choices"
    return f"{none}; did you mean {meant}?" if meant else none


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that are like one, as a person would read them out; empty where there is none."""
    by_folded = {each.casefold(): each for each in names}
    return " or ".join(by_folded[each] for each in get_close_matches(name.casefold(), by_folded, 3, 0.5))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"is {_short(text)}; write it as JSON") from None


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
