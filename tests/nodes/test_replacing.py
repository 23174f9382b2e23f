"""Files that the pack writes can be written again, as on Windows: none stays open or mapped."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from harness.runs import cancelled, train
from harness.windows import mapped_below, opened_below, replacing_as_windows
from lora_loom.lora_core.files import reader
from safetensors import safe_open
from safetensors.torch import save_file

TRIGGER = "sks"


@pytest.fixture(autouse=True)
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Yield what could not be replaced as on Windows, where LoRA files are not mapped."""
    monkeypatch.setattr(reader, "_MAPPED", False)
    with replacing_as_windows() as refused:
        yield refused


def held(*folders: Path) -> list[str]:
    gc.collect()
    return [path for folder in folders for path in (*mapped_below(folder), *opened_below(folder))]


@pytest.mark.parametrize(("family", "choices"), [("sd15", {"text_rank": 2}), ("flux1", {"offload": 1.0})])
def test_a_run_cut_off_and_resumed_twice(
    models, data, runs: Path, refused: list[Path], family: str, choices: dict[str, Any]
) -> None:
    trio, written = models(family), Path(folder_paths.get_output_directory())
    for forward in (3, 2):
        with cancelled(trio, forward):
            train(trio, data, save_every=1, **choices)
        assert held(written, runs) == []
    done = train(trio, data, save_every=1, **choices)
    assert held(written, runs) == [] and "warning" not in done.report
    longer = train(trio, data, save_every=1, steps=6, **choices)
    assert len(longer.loss_map["loss"]) == 6 and held(written, runs) == [] and refused == []


def test_what_is_held_would_be_noticed(tmp_path: Path, refused: list[Path]) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for each in (path, other):
        save_file({"x": torch.ones(4096)}, each)
    with safe_open(path, "pt") as file:
        mapped = file.get_tensor("x")
    assert held(tmp_path) == [str(path)]
    with pytest.raises(PermissionError, match="in use"):
        other.replace(path)
    del mapped, file
    with open(path, "rb"), pytest.raises(PermissionError, match="in use"):
        other.replace(path)
    assert held(tmp_path) == [] and refused == [path, path]
    other.replace(path)
