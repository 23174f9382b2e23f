from __future__ import annotations

import json
import os
import time
from pathlib import Path

import folder_paths
import pytest
from lora_loom.console.result import FAILED, Result, files_of, runs_of


def test_the_file_for_programs(tmp_path: Path) -> None:
    Result(FAILED, "it broke", 1.5, ["a.png"], [{"node": "3"}]).write(tmp_path / "new" / "result.json")
    assert json.loads((tmp_path / "new" / "result.json").read_text(encoding="utf-8")) == {
        "status": 1, "outcome": "failed", "problem": "it broke", "seconds": 1.5, "files": ["a.png"],
        "runs": [{"node": "3"}],
    }  # fmt: skip
    assert os.listdir(tmp_path / "new") == ["result.json"]


def test_other_signals_are_cancels_too() -> None:
    assert [Result(status).outcome for status in (0, 2, 130, 143)] == ["done", "bad input", "cancelled", "cancelled"]


def test_files_are_those_that_nodes_name_and_models_that_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    for name in ("checkpoints/new.safetensors", "old.safetensors", "lora_loom/run/x.safetensors", "note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.utime(tmp_path / "old.safetensors", (1, 1))
    outputs = {
        "1": {"images": [{"filename": "a.png", "subfolder": "b", "type": "output"}], "animated": (False,)},
        "2": {"images": [{"filename": "t.png", "subfolder": "", "type": "temp"}], "text": ("words",)},
        "3": {"lora_loom_files": ("mine/x.safetensors",)},
    }
    loras = Path(folder_paths.get_folder_paths("loras")[0])
    assert files_of(outputs, {"3": {"class_type": "LoraLoom_SaveLora"}}, time.time() - 60) == [
        str(tmp_path / "b" / "a.png"), str(loras / "mine" / "x.safetensors"),
        str(tmp_path / "checkpoints" / "new.safetensors"),
    ]  # fmt: skip


def test_a_run_that_has_no_folder_yet_is_not_told(tmp_path: Path) -> None:
    told = {"3": {"node": "3", "id": "a-1", "step": 2, "phase": "training"}, "4": {"node": "4", "id": None}}
    (run,) = runs_of(told, tmp_path)
    assert run["folder"] == str(tmp_path / "lora_loom" / "a-1") and run["step"] == 2 and "phase" not in run
