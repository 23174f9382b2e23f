"""Shorter lists of neutral prompts, so that a run of a few steps costs little."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from lora_loom.lora_core.data import neutral
from lora_loom.nodes.bridge.model.encoding_cache import cache_folder


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    shutil.rmtree(cache_folder() / "quiet", ignore_errors=True)
    yield
    shutil.rmtree(cache_folder() / "quiet", ignore_errors=True)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four shipped prompts and one level of noise each."""
    shipped = neutral.shipped
    monkeypatch.setattr(neutral, "shipped", lambda kind: list(shipped(kind))[:4])
    monkeypatch.setattr("lora_loom.nodes.bridge.quiet.states.FORWARDS", 8)
