"""The linter and the formatter agree with every file; their rules are in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

import pytest
from harness.comfyui import ROOT


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
        "tests",
        "__init__.py",
        "dev.py",
    ]
    ended = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
