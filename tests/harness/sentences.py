"""The sentences of the server, as they stand in the Python of the pack."""

from __future__ import annotations

import ast
from functools import cache

from .comfyui import ROOT

HOLE = "{}"


@cache
def sentences() -> set[str]:
    """The texts in the Python of the pack, line by line, with {} for what is filled in."""
    scripts = [path for folder in ("lora_core", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))]
    nodes = (node for path in scripts for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {line.strip() for node in nodes for line in _text_of(node).split("\n")}


def _text_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text_of, node.values))
    if isinstance(node, ast.FormattedValue):
        return HOLE
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
