from __future__ import annotations

from pathlib import Path

import pytest
from harness.comfyui import ROOT, comfyui_path
from lora_loom.console.start import folder_of_comfyui


def comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


def test_comfyui_is_asked_for_or_in_the_variable_or_around_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around, other = comfyui(tmp_path / "around"), comfyui(tmp_path / "other")
    pack = around / "custom_nodes" / "lora-loom"
    pack.mkdir(parents=True)
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui_path()))
    assert folder_of_comfyui(pack, other) == other.resolve() and folder_of_comfyui(pack, None) == comfyui_path()
    monkeypatch.delenv("COMFYUI_PATH")
    assert folder_of_comfyui(pack, None) == around.resolve()


def test_without_one_the_cure_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with pytest.raises(ValueError, match="--comfyui FOLDER or in the variable COMFYUI_PATH"):
        folder_of_comfyui(tmp_path / "a" / "b", None)
    with pytest.raises(ValueError, match="no ComfyUI in"):
        folder_of_comfyui(ROOT, tmp_path)
