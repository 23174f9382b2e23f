"""Names under which values of classes stand in files and hashes, whatever the classes and their fields are called.

A run's identity and folder, its state, the notes of pictures and the hashes of corrections were made of the names in
the code. Here each such class says its names once: what was written before is still found after a rename.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from types import FunctionType
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class _Names:
    """`keys` stand for the fields, {field: key} in the order of files, and `tag` for the class; fields of `later`
    versions, with their defaults, are not told where they have those."""

    keys: Mapping[str, str]
    tag: str
    later: Mapping[str, Any]

    def told(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield the keys of a value and what is in its fields."""
        for field, key in self.keys.items():
            item = getattr(value, field)
            if field not in self.later or item != self.later[field]:
                yield key, item


_NAMES: dict[type, _Names] = {}


def stored(keys: str, tag: str = "") -> Callable[[_Class], _Class]:
    """Give a dataclass its names in files: the keys of its fields in their order, separated by spaces, and a tag where
    the class itself is told (`as_text`, `as_tuple`).

    A key is the field's own name, or `key=field` for a field that is called otherwise now. `key?` is that of a field
    which came later: it is left out where it has its default, so that what was written before it came is found. Raises
    TypeError when these are not the fields of the class: after a rename write `key=field`, and never change a key or
    the tag.
    """
    parts = [each.removesuffix("?").partition("=") for each in keys.split()]
    pairs = [(field or key, key) for key, _, field in parts]
    optional = {field for (field, _), each in zip(pairs, keys.split(), strict=True) if each.endswith("?")}

    def named(cls: _Class) -> _Class:
        own = [each.name for each in fields(cls)]
        if own != [field for field, _ in pairs]:
            raise TypeError(
                f"{cls.__name__} has the fields {', '.join(own)} but stands in files with the keys {keys}; write a "
                "renamed field as key=field, and a new one where it stands in the class"
            )
        later = {each.name: each.default for each in fields(cls) if each.name in optional}
        if MISSING in later.values():
            raise TypeError(f"{cls.__name__} leaves out a field that has no plain default: {keys}")
        _NAMES[cls] = _Names(dict(pairs), tag, later)
        return cls

    return named


def keys_of(cls: type) -> tuple[str, ...]:
    """Return the keys of a class in files. Raises TypeError for a class that has none."""
    return tuple(_names(cls).keys.values())


def as_dict(value: Any) -> Any:
    """Return a value of such a class as a dict by keys, through lists, tuples and dicts; anything else as it is."""
    if type(value) in _NAMES:
        return {key: as_dict(item) for key, item in _names(type(value)).told(value)}
    if type(value) in (list, tuple):
        return type(value)(map(as_dict, value))
    return {key: as_dict(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def from_dict(cls: type[_Made], values: Mapping[str, Any]) -> _Made:
    """Return the value that stands in a file by these keys. Raises TypeError for a key that the class does not have."""
    names = {key: field for field, key in _names(cls).keys.items()}
    if unknown := sorted(values.keys() - names.keys()):
        raise TypeError(f"{cls.__name__} has no {', '.join(unknown)}")
    return cls(**{names[key]: value for key, value in values.items()})


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return the tag of a value and what is in its fields, which are not changed. Raises TypeError without a tag."""
    names = _tagged(type(value))
    return names.tag, *(getattr(value, field) for field in names.keys)


def as_text(value: Any) -> str:
    """Return `Tag(key=value, ...)`, through lists and tuples: as Python's `repr` of a dataclass, but for functions,
    which stand by their names and not by where they are in memory."""
    if type(value) in _NAMES:
        names = _tagged(type(value))
        return f"{names.tag}({', '.join(f'{key}={as_text(item)}' for key, item in names.told(value))})"
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
