"""A machine that has signed nothing yet, and files that it signs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from harness.calls import run_node
from lora_loom.nodes.bridge.host import folders
from lora_loom.nodes.save_lora import SaveLora


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user folder of a machine that has signed nothing yet."""
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return folders.own_folder()


@pytest.fixture
def model(models) -> Any:
    return models("sd15").model


@pytest.fixture
def save(model, loras: Path, random_adapter) -> Callable[..., tuple[Path, str]]:
    def save(name: str = "ink", seed: int = 0, **more: Any) -> tuple[Path, str]:
        options = {"format": "comfyui", "dtype": "fp32", "sign": True, **more}
        found, report = run_node(SaveLora, adapter=random_adapter(model, seed=seed), model=model, name=name, **options)
        return loras / found, report

    return save
