"""The result of a finished run comes back as it was, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lora_loom.lora_core.runs import result
from lora_loom.lora_core.runs.result import Finished
from PIL import Image, ImageChops

TOLD = Finished(4, "step_000004.safetensors", 4, [0.1, 1 / 3], "Plateau \u2265 2", "4 steps")
CHARTS = Image.linear_gradient("L").convert("RGB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / TOLD.file).write_bytes(b"lora")
    result.remember(tmp_path, "key", TOLD, CHARTS)
    return tmp_path


def test_it_comes_back(folder: Path) -> None:
    told, charts = result.recall(folder, "key")
    assert told == TOLD and not ImageChops.difference(charts, CHARTS).getbbox()
    assert sorted(path.name for path in folder.iterdir()) == ["charts.png", "done.json", TOLD.file]


def other_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("done.json", Path.unlink),
        ("done.json", lambda path: path.write_bytes(path.read_bytes()[:-9])),
        ("done.json", other_version),
        ("charts.png", Path.unlink),
        ("charts.png", lambda path: path.write_bytes(path.read_bytes()[:-300])),
        ("charts.png", CHARTS.save),
        (TOLD.file, Path.unlink),
        (TOLD.file, lambda path: path.write_bytes(b"another")),
    ],
)
def test_not_when_a_file_is_gone_damaged_or_another(folder: Path, file: str, change: Callable[[Path], object]) -> None:
    change(folder / file)
    assert result.recall(folder, "key") is None


def test_not_under_another_key_nor_once_forgotten(folder: Path) -> None:
    assert result.recall(folder, "other") is None
    result.forget(folder)
    result.forget(folder)
    assert result.recall(folder, "key") is None


def test_a_disk_that_does_not_take_it_is_a_warning(folder: Path, caplog, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result, "write_whole", full)
    result.remember(folder, "key", TOLD, CHARTS)
    assert "could not be saved (No space left on device)" in caplog.text
