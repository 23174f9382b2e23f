"""A workflow laid out on the classes that this ComfyUI has: each node with its inputs, and with what is in its fields.

A node inside a subgraph is laid out once, however often the subgraph is used; so are, for each use of a subgraph, the
fields that it shows of its inner nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .fields import COMBO, MATCH_TYPE, Field, Info
from .saved import ENTRY, PRIMITIVE, Graph, Link, Node, Port, Slot, Workflow
from .stack_rows import STACK, folded
from .values import Value, parts_of, slots_of, values_of

_NAMED = "Node name for S&R"
_SAMPLERS = ("KSampler", "KSamplerAdvanced")


@dataclass
class Laid:
    """`inside` is the subgraph that the node stands for, None for a plain one; `fault` why it cannot be laid out."""

    node: Node
    graph: Graph
    title: str
    inputs: list[Slot]
    outputs: list[str]
    fields: dict[str, Value] = field(default_factory=dict)
    inside: Graph | None = None
    known: bool = True
    fault: str = ""

    def sources(self) -> Iterator[tuple[Slot, Link]]:
        """Return what is connected, and to what inside the same graph."""
        for slot in self.inputs:
            link = self.graph.links.get(slot.link) if slot.link is not None else None
            if link:
                yield slot, link


class Layout:
    def __init__(self, workflow: Workflow, object_info: Mapping[str, Info]) -> None:
        self._subgraphs = workflow.subgraphs
        self._root = workflow.root
        self._info = object_info
        self._all: dict[tuple[str, str], Laid] = {}
        for graph in workflow.leaves_first():
            for node in graph.nodes.values():
                self._all[graph.id, node.id] = self._laid(graph, node)
            for host in list(self.of(graph)):
                if host.inside and host.node.properties.get("proxyWidgets"):
                    self._promote_older(host)

    def at(self, graph: Graph, node: str) -> Laid | None:
        return self._all.get((graph.id, node))

    def of(self, graph: Graph) -> Iterator[Laid]:
        return (self._all[graph.id, node] for node in graph.nodes)

    def named(self, name: str) -> Laid:
        """Return the node that `%name.field%` means in a text: by its property for that, or else by its title. Raises
        KeyError where there is none."""
        nodes = list(self._everywhere(self._root))
        found = [laid for laid in nodes if laid.node.properties.get(_NAMED, laid.node.type) == name]
        found = found or [laid for laid in nodes if laid.title == name]
        if not found:
            raise KeyError(name)
        return found[0]

    def _everywhere(self, graph: Graph) -> Iterator[Laid]:
        for laid in self.of(graph):
            yield from self._everywhere(laid.inside) if laid.inside else ()
            yield laid

    # -- plain nodes ---------------------------------------------------------------------------------------------------

    def _laid(self, graph: Graph, node: Node) -> Laid:
        if node.type in self._subgraphs:
            return self._host(graph, node, self._subgraphs[node.type])
        info = self._info.get(node.type)
        if info is None:
            return Laid(node, graph, node.title or node.type, node.inputs, node.outputs, known=False)
        title = node.title or info.get("display_name") or node.type
        laid = Laid(node, graph, title, node.inputs, _outputs(node, info))
        try:
            found = parts_of(node, info)
            laid.inputs, laid.fields = slots_of(node, found), values_of(found)
            _repair(laid)
        except ValueError as error:
            laid.fault = str(error)
        return laid

    # -- subgraphs -----------------------------------------------------------------------------------------------------

    def _host(self, graph: Graph, node: Node, inside: Graph) -> Laid:
        links = {slot.name: slot.link for slot in node.inputs}
        slots = [Slot(port.name, port.type, links.get(port.name)) for port in inside.inputs]
        outputs = [port.type for port in inside.outputs]
        laid = Laid(node, graph, node.title or inside.name, slots, outputs, inside=inside)
        for port in inside.inputs:
            self._promote(laid, port)
        saved = node.values if isinstance(node.values, list) else []
        for value, given in zip(laid.fields.values(), saved, strict=False):
            value.value = given
        for entry in node.properties.get("proxyWidgetErrorQuarantine") or []:
            _give(laid, entry.get("originalEntry"), entry.get("hostValue"))
        return laid

    def _promote(self, host: Laid, port: Port) -> None:
        """A subgraph shows the field that one of its inputs leads to, which begins with what is in the field inside."""
        for inner, name in self._led_to(host, port):
            if name in inner.fields:
                within = inner.fields[name]
                host.fields[port.name] = Value(within.field, within.value)
                next(slot for slot in host.inputs if slot.name == port.name).widget = port.name
                return

    def _led_to(self, host: Laid, port: Port) -> Iterator[tuple[Laid, str]]:
        assert host.inside is not None
        for number in port.links:
            link = host.inside.links.get(number)
            inner = self.at(host.inside, link.target) if link else None
            for slot in inner.inputs if inner else ():
                if inner and slot.link == number and slot.widget:
                    yield inner, slot.widget

    def _promote_older(self, host: Laid) -> None:
        """Pairs (inner node, field) of older files become inputs that lead to the fields."""
        saved = host.node.values if isinstance(host.node.values, list) else []
        for index, entry in enumerate(host.node.properties["proxyWidgets"]):
            if not isinstance(entry, list) or len(entry) < 2:
                continue
            value = saved[index] if index < len(saved) else None
            name, wanted = str(entry[0]), str(entry[1])
            if self._shows(host, name, wanted) is None:
                self._connect(host, name, wanted)
            shown = self._shows(host, name, wanted)
            if shown is not None and value is not None:
                host.fields[shown].value = value
            _give(host, entry, value)

    def _shows(self, host: Laid, node: str, name: str) -> str | None:
        """The input that leads to a field inside, or to what a primitive inside leads to."""
        assert host.inside is not None
        for port in host.inside.inputs:
            if port.name in host.fields and (port.bypasses == node or self._is(host, port, node, name)):
                return port.name
        return None

    def _is(self, host: Laid, port: Port, node: str, name: str) -> bool:
        inner, shown = next(self._led_to(host, port))
        return inner.node.id == node and shown == name

    def _connect(self, host: Laid, node: str, name: str) -> None:
        assert host.inside is not None
        inner = self.at(host.inside, node)
        if inner is None:
            return
        if inner.node.type == PRIMITIVE:
            targets = [slot for laid in self.of(host.inside) for slot, link in laid.sources() if link.origin == node]
            name = inner.node.title or name
        else:
            targets = [slot for slot in inner.inputs if slot.widget == name]
        if targets:
            self._add_port(host.inside, name, targets, node if inner.node.type == PRIMITIVE else "")

    def _add_port(self, graph: Graph, name: str, targets: list[Slot], bypasses: str) -> None:
        names = {port.name for port in graph.inputs}
        free = next(each for each in (name, *(f"{name}_{n}" for n in range(1, len(names) + 2))) if each not in names)
        owner = {id(slot): laid.node.id for laid in self.of(graph) for slot in laid.inputs}
        numbers = []
        for slot in targets:
            slot.link = max(graph.links, default=0) + 1
            graph.links[slot.link] = Link(ENTRY, len(graph.inputs), owner[id(slot)])
            numbers.append(slot.link)
        port = Port(free, targets[0].type, tuple(numbers), bypasses)
        graph.inputs.append(port)
        for host in [laid for laid in self._all.values() if laid.inside is graph]:
            host.inputs.append(Slot(free, port.type))
            self._promote(host, port)


def _give(host: Laid, entry: Any, value: Any) -> None:
    """Values of older files that name an input of the subgraph itself."""
    if (
        isinstance(entry, list)
        and len(entry) > 1
        and str(entry[0]) == "-1"
        and value is not None
        and entry[1] in host.fields
    ):
        host.fields[entry[1]].value = value


def _outputs(node: Node, info: Info) -> list[str]:
    defined = [_output(kind) for kind in info["output"]]
    return defined + node.outputs[len(defined) :]


def _output(kind: object) -> str:
    return COMBO if isinstance(kind, list) else "*" if kind == MATCH_TYPE else str(kind)


def _repair(laid: Laid) -> None:
    """Does what opening the file in the browser does: old names of samplers, the fixed rows of old stacks, and the
    choices of Custom Combo, which are no inputs of its class."""
    sampler = laid.fields.get("sampler_name")
    if laid.node.type in _SAMPLERS and sampler and str(sampler.value).startswith("sample_"):
        sampler.value = sampler.value[7:]
    if laid.node.type == STACK:
        linked = {slot.name for slot in laid.inputs if slot.link is not None}
        laid.fields = folded(laid.fields, linked)
    if laid.node.type == "CustomCombo" and isinstance(laid.node.values, list):
        choices = laid.node.values[2:]
        index = choices.index(laid.node.values[0]) if laid.node.values[0] in choices else -1
        named = {"index": index} | {f"option{number}": text for number, text in enumerate(choices, 1)}
        laid.fields |= {name: Value(Field(name, "STRING"), value) for name, value in named.items()}
