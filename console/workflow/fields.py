"""Inputs of a node class, from what ComfyUI says of it (`/object_info`): which are fields, in which order their values
are saved, and what they are when nothing is saved.

The order is that of `input_order`; a field with a control ("control after generate") is followed by the values of the
control; a DynamicCombo by the inputs of the choice that was made, whose names begin with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .saved import Slot

Info = Mapping[str, Any]  # of one class
Spec = list[Any]  # [type, options], as in object_info
Input = tuple[str, Spec, bool]  # name, spec, whether it is required

DYNAMIC_COMBO, AUTOGROW, MATCH_TYPE = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3", "COMFY_MATCHTYPE_V3"
COMBO = "COMBO"
ABSENT = object()  # the value of a field that has none, and is not sent
DEFAULTS: dict[str, Any] = {  # kinds that are fields, and what they are when object_info does not say
    "INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False, "COLOR": "#000000", "TEXTAREA": "", "MARKDOWN": "",
    "RANGE": {"min": 0.0, "max": 1.0},
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512}, "BOUNDING_BOXES": [], "COLORS": [],
    "LOAD_3D": "", "PAINTER": "", "AUDIO_RECORD": "", "WEBCAM": "",
}  # fmt: skip
DRAWN = ("LOAD_3D", "PAINTER", "AUDIO_RECORD", "WEBCAM")  # what the browser makes when it sends a workflow
SEEDS = ("seed", "noise_seed")  # have a control unasked


@dataclass(frozen=True)
class Field:
    """An input that a node shows as a field."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    required: bool = True

    @property
    def choices(self) -> list[Any]:
        """Return what it is chosen from: of a combo only, and empty where the server does not list it."""
        if self.kind == DYNAMIC_COMBO:
            return [option["key"] for option in self.options["options"]]
        return list(self.options.get("options") or []) if self.kind == COMBO else []

    @property
    def default(self) -> Any:
        given = self.options.get("default")
        if self.kind == DYNAMIC_COMBO:
            return self.choices[0]
        if self.kind != COMBO:
            return DEFAULTS[self.kind] if given is None else given
        return [] if self.options.get("multi_select") else given or next(iter(self.choices), ABSENT)

    @property
    def controls(self) -> int:
        """Return how many values of its control are saved after its own."""
        wanted = self.options.get("control_after_generate")
        if self.kind == "INT" and wanted is None:
            wanted = self.name in SEEDS
        return {"INT": 1, "FLOAT": 1, COMBO: 2}.get(self.kind, 0) if wanted else 0


@dataclass(frozen=True)
class Part:
    """An input as a node has it; `field` and `value` are there for a field. `outer` is False inside a DynamicCombo."""

    name: str
    spec: Spec
    field: Field | None
    value: Any
    outer: bool


def options_of(spec: Spec) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}


def inputs_of(inputs: Mapping[str, Any], order: Mapping[str, list[str]] | None = None) -> Iterator[Input]:
    """The inputs of a class, a choice or a template, in order."""
    for kind in ("required", "optional"):
        own = inputs.get(kind) or {}
        named = (order or {}).get(kind) or []
        for name in dict.fromkeys([*(name for name in named if name in own), *own]):
            yield name, own[name], kind == "required"


def field_of(name: str, spec: Spec, required: bool = True) -> Field | None:
    """None for an input that takes a connection only."""
    options = options_of(spec)
    kind = COMBO if isinstance(spec[0], list) else options.get("widgetType", spec[0])
    if options.get("forceInput") or kind not in (COMBO, DYNAMIC_COMBO, *DEFAULTS):
        return None
    return Field(name, kind, {**options, "options": spec[0]} if isinstance(spec[0], list) else options, required)


def chosen(combo: Field, choice: Any) -> list[Input]:
    """The inputs that a DynamicCombo has for one of its choices."""
    inputs = next((option["inputs"] for option in combo.options["options"] if option["key"] == choice), {})
    return [(f"{combo.name}.{name}", spec, required) for name, spec, required in inputs_of(inputs)]


def parts(inputs: Iterable[Input], take: Callable[[Field], Any]) -> Iterator[Part]:
    """The inputs, each DynamicCombo followed by those of its choice. `take` gives the value of the next field."""
    pending = [(*each, True) for each in inputs]
    while pending:
        name, spec, required, outer = pending.pop(0)
        made = field_of(name, spec, required)
        value = take(made) if made else ABSENT
        yield Part(name, spec, made, value, outer)
        if made and made.kind == DYNAMIC_COMBO:
            pending[:0] = [(*each, False) for each in chosen(made, value)]


def slots(found: Iterable[Part]) -> list[Slot]:
    """Return what connections can lead to, in order: inputs that are no fields come first. Autogrow has those of a
    new one."""
    first, then = [], []
    for part in found:
        (first if part.outer and not part.field else then).extend(_slots(part.name, part.spec))
    return first + then


def _slots(name: str, spec: Spec) -> Iterator[Slot]:
    made = field_of(name, spec)
    if spec[0] == AUTOGROW:
        template = options_of(spec)["template"]
        for number in range(template.get("min", 1) + 1):
            for key, inner, _ in inputs_of(template["input"]):
                yield from _slots(f"{name}.{grown(template, key, number)}", inner)
    elif spec[0] == MATCH_TYPE:
        yield Slot(name, str(options_of(spec)["template"]["allowed_types"]))
    else:
        combo = isinstance(spec[0], list)
        yield Slot(name, COMBO if combo else str(spec[0]), widget=name if made else None)


def grown(template: Mapping[str, Any], key: str, number: int) -> str:
    """The name that Autogrow gives an input."""
    names = template.get("names")
    if names:
        return str(names[number]) if number < len(names) else f"{key}{number}"
    alone = len(list(inputs_of(template["input"]))) == 1
    return f"{template.get('prefix', '') if alone else key}{number}"


def grows_fields(spec: Spec) -> bool:
    """Whether an Autogrow has fields, and not connections only."""
    return spec[0] == AUTOGROW and any(field_of(*each) for each in inputs_of(options_of(spec)["template"]["input"]))
