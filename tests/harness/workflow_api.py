"""A workflow as the front end saves it, turned into what POST /prompt takes: `graphToPrompt` without a browser.

Follows front end 1.47: widget order from the input_order of the node, the extra `control_after_generate` values,
DynamicCombo and Autogrow names, muted and bypassed nodes, notes, reroutes and primitives. What it does not follow it
refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Spec = list[Any]  # [type, options], as in /object_info
Node = dict[str, Any]

NEVER, BYPASS = 2, 4  # LiteGraph modes: muted, bypassed
NOTES = ("Note", "MarkdownNote")
PLAIN_WIDGETS = {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False, "COLOR": "#ffffff"}  # type: default
STACK = "LoraLoom_LoadLoraStack"
DYNAMIC_COMBO, AUTOGROW = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"


@dataclass(frozen=True)
class Widget:
    name: str
    default: Any
    sent: bool = True  # False: the value is saved in the workflow and is no input of the node
    dynamic_prompt: bool = False


def workflow_to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Raises ValueError for a node the server does not have, and for what this conversion does not cover."""
    return Conversion(workflow, object_info).graph()


class Conversion:
    def __init__(self, workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
        if (workflow.get("definitions") or {}).get("subgraphs"):
            raise ValueError("a workflow with subgraphs cannot be converted here; use the front end's graphToPrompt")
        self._info = object_info
        self._nodes: dict[Any, Node] = {node["id"]: node for node in workflow["nodes"]}
        self._links = {link[0]: (link[1], link[2]) for link in map(_link_row, workflow.get("links", []))}

    def graph(self) -> dict[str, dict[str, Any]]:
        return {
            str(node["id"]): {"class_type": node["type"], "inputs": self._inputs(node)}
            for node in self._nodes.values()
            if not is_virtual(node) and node.get("mode", 0) not in (NEVER, BYPASS)
        }

    def _inputs(self, node: Node) -> dict[str, Any]:
        if node["type"] not in self._info:
            raise ValueError(f"node {node['id']} is a {node['type']!r}, which this server does not have")
        inputs = dict(widget_values(node, self._info[node["type"]]))
        if node["type"] == STACK:
            inputs = without_empty_fields(inputs)
        for slot in node.get("inputs", []):
            source = self._source(slot.get("link"), slot["type"])
            if source is not None:
                inputs[slot["name"]] = source
        return inputs

    def _source(self, link: int | None, wanted: str) -> Any:
        """[node id, output] behind a link, the value of a primitive, or None where nothing runs."""
        if link is None:
            return None
        origin, output = self._links[link]
        node = self._nodes[origin]
        if node.get("mode", 0) == NEVER:
            return None
        if node.get("mode", 0) == BYPASS:
            through = bypass_input(node, output, wanted)
            return None if through is None else self._source(through.get("link"), through["type"])
        if node["type"] == "PrimitiveNode":
            return _as_input(node["widgets_values"][0])
        if node["type"] == "Reroute":
            return self._source(node["inputs"][0].get("link"), wanted)
        return None if is_virtual(node) else [str(origin), output]


def is_virtual(node: Node) -> bool:
    return node["type"] in (*NOTES, "PrimitiveNode", "Reroute")


def bypass_input(node: Node, output: int, wanted: str) -> dict[str, Any] | None:
    """Return the input that stands in for an output of a bypassed node: the same slot if it fits, else the first that
    does."""
    inputs = node.get("inputs", [])
    given = node["outputs"][output]["type"]
    if wanted in ("*", ""):
        return inputs[output if len(inputs) > output else 0] if inputs else None
    fitting = [slot for slot in inputs if matches(slot["type"], given) and matches(slot["type"], wanted)]
    same_place = [slot for slot in inputs[output : output + 1] if slot in fitting]
    exact = [slot for slot in inputs if slot["type"] == wanted]
    return next(iter((*same_place, *exact, *fitting)), None)


def matches(one: str, other: str) -> bool:
    kinds = [set(str(kind).lower().split(",")) for kind in (one, other)]
    return "*" in kinds[0] | kinds[1] or bool(kinds[0] & kinds[1])


def widget_values(node: Node, info: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(input name, value) of each widget, in the order of `widgets_values`; what is not saved has its default."""
    saved = node.get("widgets_values") or []
    named = saved if isinstance(saved, dict) else None
    rest = iter(() if named is not None else saved)
    pending = list(ordered_specs(info))
    while pending:
        name, spec = pending.pop(0)
        for index, widget in enumerate(widgets(name, spec)):
            value = named.get(name, widget.default) if named is not None else next(rest, widget.default)
            if index == 0 and spec[0] == DYNAMIC_COMBO:
                pending = [*option_specs(name, spec, value), *pending]
            if widget.dynamic_prompt:
                _refuse_dynamic_prompt(node, value)
            if widget.sent:
                yield widget.name, _as_input(value)


def without_empty_fields(inputs: dict[str, Any]) -> dict[str, Any]:
    """As web/js/stack/stack.js sends them: none of the fixed fields of a stack that name no file."""
    empty = [number for number in range(1, 5) if inputs.get(f"lora_{number}") == "None"]
    unsent = {f"{field}_{number}" for field in ("lora", "strength", "text_strength") for number in empty}
    return {name: value for name, value in inputs.items() if name not in unsent}


def ordered_specs(info: dict[str, Any]) -> Iterator[tuple[str, Spec]]:
    for kind in ("required", "optional"):
        specs = info["input"].get(kind, {})
        names = info.get("input_order", {}).get(kind, [])
        for name in [*names, *(name for name in specs if name not in names)]:
            yield name, specs[name]


def option_specs(combo: str, spec: Spec, key: str) -> list[tuple[str, Spec]]:
    """Return the inputs that a DynamicCombo shows for one of its options."""
    chosen = next((option["inputs"] for option in spec[1]["options"] if option["key"] == key), {})
    return [
        (f"{combo}.{name}", inner) for kind in ("required", "optional") for name, inner in chosen.get(kind, {}).items()
    ]


def widgets(name: str, spec: Spec) -> list[Widget]:
    """The widgets an input has in the front end: none for a socket, up to three for a COMBO with control."""
    options = spec[1] if len(spec) > 1 else {}
    kind = options.get("widgetType", spec[0])
    if kind == AUTOGROW:
        return _no_widgets(name, options)
    if options.get("forceInput"):
        return []
    if kind == DYNAMIC_COMBO:
        return [Widget(name, options["options"][0]["key"])]
    if isinstance(kind, list) or kind == "COMBO":
        return [Widget(name, _combo_default(kind, options)), *_controls(options.get("control_after_generate"), 2)]
    if kind not in PLAIN_WIDGETS:
        return []
    seed = kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed"))
    default = options.get("default", PLAIN_WIDGETS[kind])
    return [Widget(name, default, dynamic_prompt=bool(options.get("dynamicPrompts"))), *_controls(seed, 1)]


def _controls(wanted: object, count: int) -> list[Widget]:
    return [Widget("control", None, sent=False)] * (count if wanted else 0)


def _combo_default(kind: object, options: dict[str, Any]) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options", [])
    return options.get("default", choices[0] if choices else None)


def _no_widgets(name: str, options: dict[str, Any]) -> list[Widget]:
    inner = options["template"]["input"]
    if any(widgets(key, spec) for kind in ("required", "optional") for key, spec in inner.get(kind, {}).items()):
        raise ValueError(f"{name}: Autogrow of widgets cannot be converted here")
    return []


def _refuse_dynamic_prompt(node: Node, text: object) -> None:
    if isinstance(text, str) and any(mark in text for mark in ("{", "\\", "//", "/*")):
        raise ValueError(f"node {node['id']}: the front end would rewrite the text {text!r} (dynamic prompts)")


def _as_input(value: Any) -> Any:
    """A list would read as a link, so the front end wraps it."""
    return {"__value__": value} if isinstance(value, list) else value


def _link_row(link: list[Any] | dict[str, Any]) -> tuple[int, Any, int]:
    if isinstance(link, dict):
        return link["id"], link["origin_id"], link["origin_slot"]
    return link[0], link[1], link[2]
