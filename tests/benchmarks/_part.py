"""Keeps what a bench finds as lines of JSON, and writes the part of docs/figures.md that is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "figures.md"
_RESULTS = Path(__file__).parent / "results"


def stored(name: str) -> Path:
    return _RESULTS / f"{name}.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()] if path.is_file() else []


def add(path: Path, found: Mapping[str, Any]) -> None:
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps(found) + "\n")


def page(command: str, name: str, text: str) -> str:
    """Return the whole text of docs/figures.md with that text between the marks of a name."""
    marks = f"<!-- {name}: written by `dev.py bench {command} --write` -->\n", f"<!-- /{name} -->\n"
    before, begin, rest = PAGE.read_text("utf-8").partition(marks[0])
    after = rest.partition(marks[1])[2]
    return f"{before}{begin}\n{text}\n\n{marks[1]}{after}"


def publish(text: str) -> None:
    PAGE.write_text(text, encoding="utf-8", newline="\n")
