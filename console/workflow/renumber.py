"""Numbers of nodes that are there twice, in a workflow and in its subgraphs: those inside get new ones, as they do when
the browser opens the file. A node is then called by the same name here and there."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

Json = Any


def renumbered(document: Json) -> Json:
    """Return a copy of a saved workflow in which no number is there twice."""
    document = deepcopy(document)
    subgraphs = (document.get("definitions") or {}).get("subgraphs") or []
    taken = {str(node["id"]) for node in document["nodes"]}
    last = document.get("last_node_id") or (document.get("state") or {}).get("lastNodeId") or 0
    changed = {}
    for subgraph in subgraphs:
        moved, last = _moved(subgraph.get("nodes") or [], taken, last)
        changed[subgraph["id"]] = moved
        _move_links(subgraph.get("links") or [], moved)
    for graph in (document, *subgraphs):
        _move_promotions(graph.get("nodes") or [], changed)
    return document


def _moved(nodes: Iterable[Json], taken: set[str], last: int) -> tuple[dict[str, int], int]:
    """Gives new numbers to those that are taken; returns what became what, and the last number that was given."""
    moved = {}
    for node in nodes:
        name = str(node["id"])
        if name in taken:
            last = next(number for number in range(last + 1, last + len(taken) + 2) if str(number) not in taken)
            moved[name] = node["id"] = last
        elif name.isdigit():
            last = max(last, int(name))
        taken.add(str(node["id"]))
    return moved, last


def _move_links(links: Iterable[Json], moved: dict[str, int]) -> None:
    for link in links:
        for end in ("origin_id", "target_id"):
            link[end] = moved.get(str(link[end]), link[end])


def _move_promotions(nodes: Iterable[Json], changed: dict[str, dict[str, int]]) -> None:
    """Fields that a subgraph of an older file shows name nodes inside it."""
    for node in nodes:
        for entry in (node.get("properties") or {}).get("proxyWidgets") or []:
            entry[0] = str(changed.get(node["type"], {}).get(str(entry[0]), entry[0]))
