"""Finds what is in the fields of a node, by the list of values that the browser saved, and what its connections lead
to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import fields
from .fields import AUTOGROW, COMBO, DYNAMIC_COMBO, Field, Info, Part
from .saved import Node, Slot


@dataclass
class Value:
    field: Field
    value: Any


def parts_of(node: Node, info: Info) -> list[Part]:
    """Return a node's inputs with the values that were saved; what was not has its default. Raises ValueError for
    fields that grow in number."""
    inputs = list(fields.inputs_of(info["input"], info.get("input_order")))
    growing = next((name for name, spec, _ in inputs if fields.grows_fields(spec)), None)
    if growing:
        raise ValueError(f"the fields of {growing} grow in number, and the file does not say which value is whose")
    if isinstance(node.values, dict):
        named = node.values
        return list(fields.parts(inputs, lambda made: named.get(made.name, made.default)))
    return list(fields.parts(inputs, _in_turn(iter(without_forced(node.values, info)))))


def _in_turn(saved: Iterator[Any]) -> Callable[[Field], Any]:
    def take(made: Field) -> Any:
        value = next(saved, made.default)
        for _ in range(made.controls):
            next(saved, None)
        return next(iter(made.choices), None) if value is None and made.kind == COMBO else value

    return take


def values_of(found: Iterable[Part]) -> dict[str, Value]:
    return {part.name: Value(part.field, part.value) for part in found if part.field}


def slots_of(node: Node, found: Sequence[Part]) -> list[Slot]:
    """Return what its connections lead to: the inputs of its class, and those that were saved beside them. Fields that
    are gone, and inputs of choices that were not made, lead nowhere."""
    defined = fields.slots(found)
    saved = {slot.name: slot for slot in node.inputs}
    for slot in defined:
        slot.link = saved[slot.name].link if slot.name in saved else None
    names = {slot.name for slot in defined}
    growing = tuple(f"{part.name}." for part in found if part.spec[0] == AUTOGROW)
    gone = tuple(f"{part.name}." for part in found if part.field and part.field.kind == DYNAMIC_COMBO)
    extra = [slot for slot in node.inputs if slot.name not in names and not slot.widget]
    return defined + [slot for slot in extra if slot.name.startswith(growing) or not slot.name.startswith(gone)]


def without_forced(saved: list[Any], info: Info) -> list[Any]:
    """Files of older front ends have values of inputs that are no fields, because the node forces a connection."""
    forced: list[bool] = []
    for name, spec, _ in fields.inputs_of(info["input"]):
        options = fields.options_of(spec)
        if options.get("forceInput") or fields.field_of(name, spec):
            forced += [bool(options.get("forceInput"))] + [False] * bool(options.get("control_after_generate"))
    if len(forced) != len(saved):
        return saved
    return [value for value, dropped in zip(saved, forced, strict=True) if not dropped]


def sent(value: Any, kind: str) -> Any:
    """Return a value as a prompt has it: a list would read as a connection."""
    if not isinstance(value, list):
        return value
    return {"__type__": "CURVE", "__value__": value} if kind == "CURVE" else {"__value__": value}
