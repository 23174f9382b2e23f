"""The linter and the formatter agree with every file, by the rules of pyproject.toml; many values have their names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness.comfyui import ROOT

MOST_BY_PLACE = 6  # values that a class is given without their names


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(command: list[str]) -> None:
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        *command,
        "--no-cache",
        "lora_core",
        "nodes",
        "console",
        "tests",
        "__init__.py",
        "headless.py",
        "dev.py",
    ]
    ended = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def unnamed(source: str) -> Iterator[tuple[int, str]]:
    """Lines and classes where one is made of more values by place than a reader can tell apart."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if name[:1].isupper() and len(call.args) > MOST_BY_PLACE:
            yield call.lineno, name


def test_many_values_are_given_by_name() -> None:
    files = [path for folder in ("lora_core", "nodes", "console") for path in (ROOT / folder).rglob("*.py")]
    found = [(path.name, *each) for path in files for each in unnamed(path.read_text(encoding="utf-8"))]
    assert found == []


def test_what_has_too_many_values_by_place_is_found() -> None:
    values = ", ".join(map(str, range(MOST_BY_PLACE + 1)))
    assert [*unnamed(f"config.Config({values})")] == [(1, "Config")]
    assert not [*unnamed(f"function({values})"), *unnamed(f"Config({values.rpartition(',')[0]}, last=1)")]
