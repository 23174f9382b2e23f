"""The prompt that a saved workflow means: what the browser would send for it, in the same order.

Follows ComfyUI's front end 1.47 to 1.58: muted nodes give nothing, bypassed ones pass on the first input that fits,
reroutes and primitives are looked through, subgraphs are taken apart. A node inside a subgraph is called by the way to
it, `7:12`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from random import Random
from typing import Any

from . import order, texts
from .browser_only import CURE, why_browser_only, why_everywhere
from .fields import ABSENT, DRAWN, Info
from .laid import Laid, Layout
from .saved import BYPASS, ENTRY, NEVER, NOTES, PRIMITIVE, REROUTE, Graph, Link, Slot, Workflow
from .values import Value, sent

Prompt = dict[str, dict[str, Any]]
Place = tuple[str, str]  # node of the prompt, or subgraph or primitive; input
_REPLACES = "Run widget replace on values"


@dataclass(frozen=True)
class At:
    """A node where it runs: `host` is the subgraph node that it is inside of."""

    laid: Laid
    id: str
    host: At | None = None

    def beside(self, node: str) -> str:
        return f"{self.host.id}:{node}" if self.host else node

    @property
    def runs(self) -> bool:
        node = self.laid.node
        return not node.silent and self.laid.inside is None and node.type not in (*NOTES, PRIMITIVE, REROUTE)


@dataclass
class Converted:
    """A prompt; which of its inputs the fields of subgraphs and primitives go to, and the titles of those; what is
    wrong, a sentence each; the saved nodes that its nodes come from, and all of the workflow; and what was changed."""

    prompt: Prompt = field(default_factory=dict)
    stands_for: dict[Place, list[Place]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    sources: dict[str, Laid] = field(default_factory=dict)
    layout: Layout | None = None
    changed: set[Place] = field(default_factory=set)


def convert(workflow: Workflow, object_info: Mapping[str, Info], now: datetime) -> Converted:
    """now: for the dates that primitives ask for. Names of files are left as they are written, for `names.fill`. Of a
    text with choices in braces, the same file always gives the same choice. Raises ValueError when a subgraph holds
    itself."""
    return _Conversion(workflow, object_info, now).converted()


class _Conversion:
    def __init__(self, workflow: Workflow, object_info: Mapping[str, Info], now: datetime) -> None:
        self._layout = Layout(workflow, object_info)
        self._root = workflow.root
        self._now = now
        self._all: dict[str, At] = {}
        self._done = Converted(layout=self._layout)

    def converted(self) -> Converted:
        for node in order.execution(list(self._layout.of(self._root))):
            self._enter(At(node, node.node.id))
        for at in list(self._all.values()):
            if at.laid.node.type == PRIMITIVE:
                self._fill_from(at)
        for at in self._all.values():
            if at.runs:
                self._add(at)
        self._done.prompt = _in_order(self._done.prompt)
        self._done.titles = {node: self._all[node].laid.title for node, _ in self._done.stands_for}
        return self._done

    def _enter(self, at: At) -> None:
        """A subgraph that does not run is looked through from the outside only; what is inside others counts itself."""
        self._all[at.id] = at
        if at.laid.inside and (at.host or not at.laid.node.silent):
            for laid in self._layout.of(at.laid.inside):
                self._enter(At(laid, f"{at.id}:{laid.node.id}", at))

    # -- what is in the fields -----------------------------------------------------------------------------------------

    def _fill_from(self, at: At) -> None:
        """A primitive writes its value into the fields that it is connected to."""
        node = at.laid.node
        value = node.values[0] if isinstance(node.values, list) and node.values else ABSENT
        if isinstance(value, str) and node.properties.get(_REPLACES):
            value = texts.replaced(value, self._now, lambda name, key: self._layout.named(name).fields[key].value)
        for laid in self._layout.of(at.laid.graph):
            for slot, link in laid.sources():
                if link.origin != node.id or slot.widget not in laid.fields:
                    continue
                if value is not ABSENT:
                    laid.fields[slot.widget].value = value
                if laid.inside is None:
                    places = self._done.stands_for.setdefault((at.id, "value"), [])
                    places.append((at.beside(laid.node.id), slot.widget))

    def _written(self, at: At, name: str, value: Value) -> Any:
        given = value.value
        if isinstance(given, str) and value.field.options.get("dynamicPrompts"):
            return texts.dynamic(given, Random(sha256(f"{at.id} {name} {given}".encode()).digest()))
        return sent(given, value.field.kind)

    # -- what is sent --------------------------------------------------------------------------------------------------

    def _add(self, at: At) -> None:
        laid = at.laid
        if why_browser_only(laid.node.type) and not laid.known:
            return
        drawn = next((name for name, value in laid.fields.items() if value.field.kind in DRAWN), None)
        fault = laid.fault or (why_everywhere(laid.node.type) if any(laid.sources()) else "")
        if fault:
            self._fault(at, fault)
        if drawn:
            self._fault(at, f"its input {drawn} is made by the browser when it sends the workflow; {CURE}")
        inputs = {n: self._written(at, n, v) for n, v in laid.fields.items() if v.value is not ABSENT}
        for index, slot in enumerate(laid.inputs):
            source = self._source(at, index, slot.type, ())
            if isinstance(source, Link):
                inputs[slot.name] = [source.origin, source.output]
            elif source is not None:
                inputs[slot.name] = sent(source[0].value, "")
                self._done.stands_for.setdefault(source[1], []).append((at.id, slot.name))
        self._done.prompt[at.id] = {"class_type": laid.node.type, "inputs": inputs, "_meta": {"title": laid.title}}
        self._done.sources[at.id] = laid

    def _fault(self, at: At, why: str) -> None:
        sentence = f"node {at.id} ({at.laid.title}): {why}"
        if sentence not in self._done.problems:
            self._done.problems.append(sentence)

    # -- where a connection comes from ---------------------------------------------------------------------------------

    def _source(self, at: At, index: int, wanted: str, seen: tuple[str, ...]) -> Link | tuple[Value, Place] | None:
        """The output that runs behind an input; or the field of a subgraph that stands in its place, and which it is;
        None where nothing comes."""
        slot = at.laid.inputs[index] if index < len(at.laid.inputs) else None
        if slot is None or slot.link is None:
            return None
        key = f"{at.id}[{index}]"
        link = at.laid.graph.links.get(slot.link)
        if key in seen or link is None:
            what = "goes round in a circle" if link else f"names connection {slot.link}, which the file does not have"
            self._fault(at, f"its input {slot.name} {what}; connect it anew in ComfyUI, and save")
            return None
        seen = (*seen, key)
        if at.host and link.origin == ENTRY:
            return self._from_outside(at.host, link.output, seen)
        origin = self._all.get(at.beside(link.origin))
        return self._output(origin, link.output, wanted, seen) if origin else None

    def _from_outside(self, host: At, index: int, seen: tuple[str, ...]) -> Link | tuple[Value, Place] | None:
        if not 0 <= index < len(host.laid.inputs):
            return None
        slot = host.laid.inputs[index]
        if slot.link is None:
            shown = host.laid.fields.get(slot.name)
            return (shown, (host.id, slot.name)) if shown else None
        return self._source(host, index, slot.type, seen)

    def _output(self, at: At, output: int, wanted: str, seen: tuple[str, ...]) -> Link | tuple[Value, Place] | None:
        laid = at.laid
        if laid.node.mode == NEVER or not 0 <= output < len(laid.outputs):
            return None
        if laid.node.mode == BYPASS:
            through = bypassed(laid.inputs, laid.outputs[output], output, wanted)
            return None if through is None else self._source(at, through, laid.inputs[through].type, seen)
        if laid.inside:
            return self._from_inside(at, laid.inside, output, wanted, seen)
        if laid.node.type == REROUTE:
            return self._source(at, 0, wanted, seen)
        why = None if laid.known else why_browser_only(laid.node.type)
        if why:
            self._fault(at, why)
        return None if why or not at.runs else Link(at.id, output, "")

    def _from_inside(
        self, at: At, inside: Graph, output: int, wanted: str, seen: tuple[str, ...]
    ) -> Link | tuple[Value, Place] | None:
        numbers = inside.outputs[output].links
        link = inside.links.get(numbers[0]) if numbers else None
        if link is None:
            return None
        if link.origin == ENTRY:
            return self._source(at, link.output, wanted, seen)
        inner = self._all.get(f"{at.id}:{link.origin}")
        return self._output(inner, link.output, wanted, seen) if inner else None


def _in_order(prompt: Prompt) -> Prompt:
    """JavaScript lists numbers first, the lowest first."""
    numbers = sorted((name for name in prompt if name.isdigit()), key=int)
    return {name: prompt[name] for name in dict.fromkeys([*numbers, *prompt])}


def bypassed(inputs: list[Slot], given: str, output: int, wanted: str) -> int | None:
    """The input that stands in for an output of a bypassed node: the one beside it if it fits, else the first of the
    very type, else the first that fits."""
    if wanted in ("*", ""):
        return (output if len(inputs) > output else 0) if inputs else None
    fits = [index for index, slot in enumerate(inputs) if matches(slot.type, given) and matches(slot.type, wanted)]
    if output in fits:
        return output
    same = [index for index, slot in enumerate(inputs) if slot.type == wanted]
    return next(iter((*same, *fits)), None)


def matches(one: str, other: str) -> bool:
    """Whether an output of one type may lead to an input of the other; a type may list several."""
    kinds = [set(kind.lower().split(",")) for kind in (one, other)]
    return any(kind & {"*", "", "0"} for kind in kinds) or bool(kinds[0] & kinds[1])
