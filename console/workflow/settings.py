"""`--set NODE.INPUT=VALUE`: fields of a prompt, changed by name.

NODE is the number of a node, `7:12` inside a subgraph; or its title or class, where only one has it. NODE and its dot
may be left out where only one node has such a field. Fields that a subgraph shows, and the `value` of a primitive, go
to the fields that they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import fields, typed
from .fields import DYNAMIC_COMBO, Field, Info
from .prompt import Converted, Place

_FORM = "write it as NODE.INPUT=VALUE, such as 12.steps=500"


def apply(settings: Sequence[str], done: Converted, object_info: Mapping[str, Info]) -> list[str]:
    """Changes the prompt; returns what is wrong with the settings, a sentence each."""
    problems = []
    for setting in settings:
        try:
            _set(setting, done, object_info)
        except ValueError as error:
            problems.append(f"--set {setting}: {error}")
    return problems


def _set(setting: str, done: Converted, object_info: Mapping[str, Info]) -> None:
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise ValueError(_FORM)
    for node, key in places(name.strip(), done, object_info):
        made = fields_at(done.prompt[node], object_info).get(key)
        if made is None:
            raise ValueError(f"{key} of node {node} is a connection and no field")
        try:
            value = typed.read(made, text)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from None
        inputs = done.prompt[node]["inputs"]
        if made.kind == DYNAMIC_COMBO and inputs.get(key) != value:
            _choose(inputs, made, value)
        inputs[key] = value
        done.changed.add((node, key))


def _choose(inputs: dict[str, Any], combo: Field, choice: Any) -> None:
    """The inputs of another choice take the place of those that were there."""
    for name in [name for name in inputs if name.startswith(f"{combo.name}.")]:
        del inputs[name]
    for part in fields.parts(fields.chosen(combo, choice), lambda made: made.default):
        if part.field and part.value is not fields.ABSENT:
            inputs[part.name] = part.value


def fields_at(node: Mapping[str, Any], object_info: Mapping[str, Info]) -> dict[str, Field]:
    """The fields of a node of a prompt, those of the choices that it made included."""
    info = object_info.get(node["class_type"])
    if info is None:
        return {}
    inputs = node["inputs"]
    found = fields.parts(
        fields.inputs_of(info["input"], info.get("input_order")),
        lambda made: made.default if isinstance(inputs.get(made.name), list) else inputs.get(made.name, made.default),
    )
    return {part.name: part.field for part in found if part.field}


def places(name: str, done: Converted, object_info: Mapping[str, Info]) -> list[Place]:
    """The inputs that a name means. Raises ValueError where it means none, or more than one."""
    dots = [at for at, letter in enumerate(name) if letter == "."]
    for at in dots:
        nodes = _nodes(name[:at], done, object_info)
        if len(nodes) > 1:
            raise ValueError(f"{name[:at]} is the name of nodes {', '.join(nodes)}; write {nodes[0]}.{name[at + 1 :]}")
        if nodes:
            return _inputs(nodes[0], name[at + 1 :], done, object_info)
    bare = _bare(name, done, object_info)
    if bare or not dots:
        return bare
    wanted = name[: dots[0]]
    meant = typed.nearest(wanted, _names(done, object_info))
    raise ValueError(f"no node is called {wanted}" + (f"; did you mean {meant}?" if meant else f"; {_FORM}"))


def _nodes(name: str, done: Converted, object_info: Mapping[str, Info]) -> list[str]:
    known = {**done.prompt, **{node: {} for node, _ in done.stands_for}}
    if name in known:
        return [name]
    titles = {**_titles(done), **done.titles}
    display = _display(done, object_info)
    short = {node: (titles[node] or display[node]).partition(" (")[0] for node in display}  # without (Loom)
    for called in (titles, {node: each["class_type"] for node, each in done.prompt.items()}, display, short):
        found = [node for node, each in called.items() if each.casefold() == name.casefold()]
        if found:
            return found
    return []


def _titles(done: Converted) -> dict[str, str]:
    return {node: str((each.get("_meta") or {}).get("title") or "") for node, each in done.prompt.items()}


def _display(done: Converted, object_info: Mapping[str, Info]) -> dict[str, str]:
    kinds = {node: each["class_type"] for node, each in done.prompt.items()}
    return {node: str(object_info.get(kind, {}).get("display_name") or "") for node, kind in kinds.items()}


def _names(done: Converted, object_info: Mapping[str, Info]) -> set[str]:
    called = {*_titles(done).values(), *done.titles.values()}
    called |= {each["class_type"] for each in done.prompt.values()} | set(_display(done, object_info).values())
    return (called | set(done.prompt)) - {""}


def _inputs(node: str, name: str, done: Converted, object_info: Mapping[str, Info]) -> list[Place]:
    if (node, name) in done.stands_for:
        return done.stands_for[node, name]
    if node in done.prompt:
        made = fields_at(done.prompt[node], object_info)
        if name in made or name in done.prompt[node]["inputs"]:
            return [(node, name)]
    else:
        made = {key: None for at, key in done.stands_for if at == node}
    meant = typed.nearest(name, made)
    has = f"did you mean {meant}?" if meant else f"it has {', '.join(made) or 'none'}"
    raise ValueError(f"node {node} has no field {name}; {has}")


def _bare(name: str, done: Converted, object_info: Mapping[str, Info]) -> list[Place]:
    """A field without its node."""
    found = [node for node, each in done.prompt.items() if name in fields_at(each, object_info)]
    if len(found) > 1:
        raise ValueError(f"nodes {', '.join(found)} have a field {name}; write {found[0]}.{name}")
    if not found and "." not in name:
        every = {key for each in done.prompt.values() for key in fields_at(each, object_info)}
        meant = typed.nearest(name, every)
        raise ValueError(f"no node has a field {name}" + (f"; did you mean {meant}?" if meant else f"; {_FORM}"))
    return [(node, name) for node in found]
