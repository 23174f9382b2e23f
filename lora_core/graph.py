"""A prompt as programs post it, `{node id: {"class_type", "inputs"}}`: what is linked to what in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Graph = Mapping[str, dict[str, Any]]


def kind(node: Any) -> str:
    return str(node.get("class_type", "")) if isinstance(node, Mapping) else ""


def links(graph: Graph, name: str) -> list[tuple[str, int]]:
    """(node, output) of all that a node takes from others."""
    inputs = (graph[name].get("inputs") or {}).values()
    return [(value[0], value[1]) for value in inputs if _is_link(value, graph)]


def readers(graph: Graph, node: str, outputs: range) -> set[str]:
    """Return the nodes that take one of these outputs of a node."""
    return {name for name in graph if any(source == node and slot in outputs for source, slot in links(graph, name))}


def below(graph: Graph, node: str, outputs: range) -> set[str]:
    """Return all nodes that depend on one of these outputs of a node."""
    found, more = set(), readers(graph, node, outputs)
    while more:
        found |= more
        more = {name for name in graph if any(source in found for source, _ in links(graph, name))} - found
    return found


def signature(graph: Graph, node: str) -> str:
    """Return a hash of all that a node's output follows from, whatever the nodes are called: its kind and inputs, and
    those above it."""
    known: dict[str, str] = {}

    def signed(name: str) -> str:
        if name not in known:
            inputs = graph[name].get("inputs") or {}
            told = {key: [signed(v[0]), v[1]] if _is_link(v, graph) else v for key, v in inputs.items()}
            text = json.dumps([kind(graph[name]), told], sort_keys=True, default=str)
            known[name] = hashlib.sha256(text.encode()).hexdigest()
        return known[name]

    return signed(node)


def _is_link(value: Any, graph: Graph) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    name, slot = value
    return isinstance(name, str) and name in graph and isinstance(slot, int)
