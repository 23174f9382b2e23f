"""Checks what is linked to what in a posted prompt."""

from __future__ import annotations

from typing import Any

from lora_loom.lora_core.graph import below, kind, links, readers, signature


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "a": node("Load", file="ink"),
    "b": node("Stack", model=["a", 0], rows=["not a node", 0], pair=["x", "y"]),
    "c": node("Sample", model=["b", 0]),
    "d": node("Apply", lora_stack=["b", 2], model=["a", 0]),
    "e": node("Save", images=["c", 0]),
}


def test_readers_by_output() -> None:
    assert links(GRAPH, "b") == [("a", 0)] and kind(GRAPH["b"]) == "Stack" and kind(None) == ""
    assert readers(GRAPH, "b", range(2)) == {"c"} and readers(GRAPH, "b", range(2, 3)) == {"d"}
    assert below(GRAPH, "b", range(2)) == {"c", "e"} and below(GRAPH, "e", range(2)) == set()


def test_signature_is_of_what_is_above_whatever_it_is_called() -> None:
    renamed = {"1": GRAPH["a"], "2": node("Stack", model=["1", 0], rows=["not a node", 0], pair=["x", "y"])}
    assert signature(GRAPH, "b") == signature(renamed, "2") == signature({**GRAPH, "c": node("Other")}, "b")
    changed = {**renamed, "1": node("Load", file="oil")}
    assert signature(renamed, "2") != signature(changed, "2")
    assert signature(renamed, "2") == signature({**renamed, "2": {**renamed["2"], "_meta": {"title": "t"}}}, "2")
