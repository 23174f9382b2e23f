"""Says in words what differs between the settings of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLAIN_WORDS = {"dataset": "the data set", "model": "the base model or its layers", "preset": "targets"}
_DECIDE_LAYERS = {"preset", "include", "exclude", "text_rank"}
_ABSENT = object()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """By setting, such as `rank`: 'rank 16, now 32'. Settings that only one of the two knows are among them."""
    old, new = _flat(before), _flat(now)
    names = [name for name in {**new, **old} if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    if _DECIDE_LAYERS.intersection(names):
        names = [name for name in names if name != "model"]
    return {name: _said(name, old, new) for name in names}


def in_words(settings: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """By setting: its name and its value, as a person reads them."""
    return {name: (_words(name), _shown(value)) for name, value in _flat(settings).items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what `differences` tells, as the name of the setting, what it was and what it is."""
    sides, names = (_flat(before), _flat(now)), differences(before, now)
    found = [(_words(name), *(_shown(side.get(name, _ABSENT)) for side in sides)) for name in names]
    return [(name, was, now if was != now else "another") for name, was, now in found]


def _words(name: str) -> str:
    return _PLAIN_WORDS.get(name, name).removeprefix("the ").replace("_", " ")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and texts of nested settings, under their last names; an optimizer's own name is `optimizer`. The data
    set, the model and the like are told apart by a hash and are one setting each."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and "hash" not in value:
            prefix = "text_" if name == "text" else ""
            flat |= {name if inner == "name" else prefix + inner: v for inner, v in _flat(value).items()}
        elif value is not None:
            flat[name] = list(value) if isinstance(value, tuple) else value  # as JSON has it
    return flat


def _said(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    word, before, now = _PLAIN_WORDS.get(name, name), *(_shown(side.get(name, _ABSENT)) for side in (old, new))
    if before == now:
        return word
    hashed = isinstance(new.get(name, old.get(name)), Mapping)
    return f"{word} ({before}, now {now})" if hashed else f"{word} {before}, now {now}"


def _shown(value: Any) -> str:
    """A mapping is shown by everything but its hash."""
    if value is _ABSENT or value in ("", []):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{v} {k}" if isinstance(v, int) else f"{v}" for k, v in value.items() if k != "hash" and v)
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
