"""Workflows with what the browser sends for them, and what ComfyUI says of the classes in them. Both are stored;
tests/e2e/test_prompts.py holds them to the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def object_info() -> dict[str, Any]:
    return json.loads((HERE / "object_info.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def graphs() -> dict[str, dict[str, Any]]:
    """{name: {"workflow", "prompt"}}."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "graphs").glob("*.json"))
    }
