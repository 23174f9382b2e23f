"""Reads the help pages of nodes, for tests that hold them to what the code says."""

from __future__ import annotations

from .comfyui import ROOT


def page(node: str) -> str:
    return (ROOT / "web" / "docs" / node / "en.md").read_text(encoding="utf-8")


def table(node: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table under a heading: the other cells by the first."""
    lines = page(node).split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: rest for name, *rest in rows[2:]}
