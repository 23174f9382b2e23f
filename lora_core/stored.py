"""Names under which values of classes stand in files and hashes, whatever the classes and their fields are called.

A run's identity and folder, its state, the notes of pictures and the hashes of corrections were made of the names in
the code. Here each such class says its names once: what was written before is still found after a rename.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import FunctionType
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class _Names:
    """`keys` stand for the fields, {field: key} in the order of files, and `tag` for the class. `unsaid` are the values
    of fields that came later, with which these do not stand in dicts."""

    keys: Mapping[str, str]
    tag: str
    unsaid: Mapping[str, Any] = field(default_factory=dict)

    def is_said(self, name: str, value: Any) -> bool:
        return name not in self.unsaid or value != self.unsaid[name]


_NAMES: dict[type, _Names] = {}


def stored(keys: str, tag: str = "") -> Callable[[_Class], _Class]:
    """Give a dataclass its names in files: the keys of its fields in their order, separated by spaces, and a tag where
    the class itself is told (`as_text`, `as_tuple`).

    A key is the field's own name, or `key=field` for a field that is called otherwise now. A field that files of before
    do not have is written `key?`: with its default it is left out of dicts, and so of hashes made of them. Raises
    TypeError when these are not the fields of the class: after a rename write `key=field`, and never change a key or
    the tag.
    """
    told = [each.removesuffix("?").partition("=") for each in keys.split()]
    pairs = [(name or key, key) for key, _, name in told]
    late = {pair[0] for pair, each in zip(pairs, keys.split(), strict=True) if each.endswith("?")}

    def named(cls: _Class) -> _Class:
        own = [each.name for each in fields(cls)]
        if own != [field for field, _ in pairs]:
            raise TypeError(
                f"{cls.__name__} has the fields {', '.join(own)} but stands in files with the keys {keys}; write a "
                "renamed field as key=field, and a new one where it stands in the class"
            )
        unsaid = {each.name: each.default for each in fields(cls) if each.name in late}
        if MISSING in unsaid.values():
            raise TypeError(f"{cls.__name__} leaves out a field that has no plain default: {keys}")
        _NAMES[cls] = _Names(dict(pairs), tag, unsaid)
        return cls

    return named


def keys_of(cls: type) -> tuple[str, ...]:
    """Return the keys of a class in files. Raises TypeError for a class that has none."""
    return tuple(_names(cls).keys.values())


def as_dict(value: Any) -> Any:
    """Return a value of such a class as a dict by keys, through lists, tuples and dicts; anything else as it is."""
    if type(value) in _NAMES:
        names = _NAMES[type(value)]
        own = ((key, getattr(value, name), name) for name, key in names.keys.items())
        return {key: as_dict(item) for key, item, name in own if names.is_said(name, item)}
    if type(value) in (list, tuple):
        return type(value)(map(as_dict, value))
    return {key: as_dict(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def from_dict(cls: type[_Made], values: Mapping[str, Any]) -> _Made:
    """Return the value that stands in a file by these keys. Raises TypeError for a key that the class does not have."""
    names = {key: name for name, key in _names(cls).keys.items()}
    if unknown := sorted(values.keys() - names.keys()):
        raise TypeError(f"{cls.__name__} has no {', '.join(unknown)}")
    return cls(**{names[key]: value for key, value in values.items()})


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return the tag of a value and what is in its fields, which are not changed. Raises TypeError without a tag."""
    names = _tagged(type(value))
    return names.tag, *(getattr(value, name) for name in names.keys)


def as_text(value: Any) -> str:
    """Return `Tag(key=value, ...)`, through lists and tuples: as Python's `repr` of a dataclass, but for functions,
    which stand by their names and not by where they are in memory."""
    if type(value) in _NAMES:
        names = _tagged(type(value))
        return f"{names.tag}({', '.join(f'{k}={as_text(getattr(value, f))}' for f, k in names.keys.items())})"
    if type(value) is list:
        return f"[{', '.join(map(as_text, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(as_text, value))}{',' * (len(value) == 1)})"
    return value.__qualname__ if isinstance(value, FunctionType) else repr(value)


def _names(cls: type) -> _Names:
    if cls not in _NAMES:
        raise TypeError(f"{cls.__name__} has no names in files; give it some with @stored")
    return _NAMES[cls]


def _tagged(cls: type) -> _Names:
    names = _names(cls)
    if not names.tag:
        raise TypeError(f"{cls.__name__} has no tag in files; give it one with @stored")
    return names
