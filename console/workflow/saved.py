"""A workflow as ComfyUI's front end saves it (versions 0.4 and 1), read: nodes, links, and the insides of subgraphs.

Links are rows in version 0.4 and objects in version 1 and inside subgraphs. Inside a subgraph, a link that comes from
the node `ENTRY` comes from the outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .renumber import renumbered

Json = Any
ENTRY, EXIT = "-10", "-20"  # where a subgraph's links come in, and where they leave it
NEVER, BYPASS = 2, 4  # modes: muted, bypassed
PRIMITIVE, REROUTE = "PrimitiveNode", "Reroute"
NOTES = ("Note", "MarkdownNote")


@dataclass
class Slot:
    """An input of a node; `widget` names the field that it takes the place of."""

    name: str
    type: str
    link: int | None = None
    widget: str | None = None


@dataclass(frozen=True)
class Link:
    origin: str
    output: int
    target: str


@dataclass
class Node:
    id: str
    type: str
    title: str
    mode: int
    inputs: list[Slot]
    outputs: list[str]
    leading: list[list[int]]  # the links that leave each output
    values: list[Any] | dict[str, Any]
    properties: Mapping[str, Any]

    @property
    def silent(self) -> bool:
        """Return whether it does not run: muted or bypassed."""
        return self.mode in (NEVER, BYPASS)


@dataclass(frozen=True)
class Port:
    """An input or an output of a subgraph, with the links inside that it has. `bypasses` names the primitive inside
    whose place an input has taken."""

    name: str
    type: str
    links: tuple[int, ...]
    bypasses: str = ""


@dataclass
class Graph:
    id: str
    name: str
    nodes: dict[str, Node]
    links: dict[int, Link]
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)


@dataclass
class Workflow:
    root: Graph
    subgraphs: dict[str, Graph]

    def leaves_first(self) -> Iterator[Graph]:
        """The subgraphs, each after those that it holds, and the root. Raises ValueError when one holds itself."""
        done: set[str] = set()
        for name in self.subgraphs:
            yield from self._inner(name, done, ())
        yield self.root

    def _inner(self, name: str, done: set[str], within: tuple[str, ...]) -> Iterator[Graph]:
        graph = self.subgraphs[name]
        if name in within:
            raise ValueError(f"the subgraph {graph.name!r} holds itself; take it out of itself in ComfyUI, and save")
        if name in done:
            return
        for node in graph.nodes.values():
            if node.type in self.subgraphs:
                yield from self._inner(node.type, done, (*within, name))
        done.add(name)
        yield graph


def is_saved(document: Json) -> bool:
    """Whether a JSON document is a workflow as the browser saves it, and no prompt."""
    return isinstance(document, dict) and isinstance(document.get("nodes"), list)


def read(document: Json) -> Workflow:
    """Raises ValueError when the document is not what ComfyUI saves."""
    try:
        document = renumbered(document)
        subgraphs = {str(each["id"]): _graph(each) for each in definitions(document)}
        return Workflow(_graph(document), subgraphs)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"this is no workflow that ComfyUI saves ({type(error).__name__}: {error}); open it there, and save again"
        ) from error


def definitions(document: Json) -> list[Json]:
    """The subgraphs that a workflow defines, those inside others included."""
    own = (document.get("definitions") or {}).get("subgraphs") or []
    return [each for subgraph in own for each in (subgraph, *definitions(subgraph))]


def _graph(data: Json) -> Graph:
    return Graph(
        id=str(data.get("id", "")),
        name=str(data.get("name") or ""),
        nodes={str(node["id"]): _node(node) for node in data["nodes"]},
        links=dict(map(_link, data.get("links") or [])),
        inputs=[_port(port) for port in data.get("inputs") or []],
        outputs=[_port(port) for port in data.get("outputs") or []],
    )


def _node(data: Json) -> Node:
    outputs = data.get("outputs") or []
    return Node(
        id=str(data["id"]),
        type=str(data["type"]),
        title=str(data.get("title") or ""),
        mode=data.get("mode") or 0,
        inputs=[_slot(slot) for slot in data.get("inputs") or []],
        outputs=[str(slot.get("type", "*")) for slot in outputs],
        leading=[[_number(link) for link in slot.get("links") or []] for slot in outputs],
        values=_values(data.get("widgets_values") or []),
        properties=data.get("properties") or {},
    )


def _slot(data: Json) -> Slot:
    widget, link = data.get("widget"), data.get("link")
    number = None if link is None else _number(link)
    return Slot(str(data["name"]), str(data.get("type", "*")), number, str(widget["name"]) if widget else None)


def _number(link: Json) -> int:
    if not isinstance(link, int):
        raise TypeError(f"{link!r} is no number of a connection")
    return link


def _values(saved: Json) -> list[Any] | dict[str, Any]:
    if not isinstance(saved, (list, dict)):
        raise TypeError(f"{saved!r} are no values of a node")
    return saved


def _link(data: Json) -> tuple[int, Link]:
    if isinstance(data, dict):
        data = [data[name] for name in ("id", "origin_id", "origin_slot", "target_id")]
    return _number(data[0]), Link(str(data[1]), _number(int(data[2])), str(data[3]))


def _port(data: Json) -> Port:
    return Port(str(data["name"]), str(data.get("type", "*")), tuple(map(_number, data.get("linkIds") or ())))
