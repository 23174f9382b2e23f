"""A step's LoRA is taken into use, and a run's folder taken away: whole or not at all, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.links import link
from harness.run_folders import lora, run
from lora_loom.lora_core.files.faults import UnsafeFileError
from lora_loom.lora_core.files.lock import locked
from lora_loom.lora_core.runs import taking


def test_a_copy_has_a_free_name_and_the_same_bytes_have_the_same(tmp_path: Path) -> None:
    folder, loras = run(tmp_path / "runs"), tmp_path / "loras"
    first, second = lora(folder, 10), lora(folder, 20)
    assert taking.copy(first, loras, "ink") == taking.copy(first, loras, "ink") == "ink.safetensors"
    assert taking.copy(second, loras, "ink") == taking.copy(second, loras, "ink") == "ink_0002.safetensors"
    assert (loras / "ink.safetensors").read_bytes() == first.read_bytes()
    assert (loras / "ink_0002.safetensors").read_bytes() == second.read_bytes()
    assert taking.copy(first, loras, "styles/ink") == "styles/ink.safetensors"
    assert {path.name for path in loras.iterdir()} == {"ink.safetensors", "ink_0002.safetensors", "styles"}


def test_a_name_that_is_taken_by_something_else_stays(tmp_path: Path) -> None:
    source, loras = lora(run(tmp_path / "runs"), 10), tmp_path / "loras"
    (loras / "ink.safetensors").mkdir(parents=True)
    if os.name != "nt":
        (loras / "ink_0002.safetensors").symlink_to(tmp_path / "nowhere")
    taken = len(list(loras.iterdir()))
    assert taking.copy(source, loras, "ink") == f"ink_{taken + 1:04d}.safetensors"
    assert not (tmp_path / "nowhere").exists()


def test_a_broken_file_is_not_copied_and_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loras = run(tmp_path / "runs"), tmp_path / "loras"
    broken = folder / "step_000010.safetensors"
    broken.write_bytes(b"nonsense")
    with pytest.raises(UnsafeFileError):
        taking.copy(broken, loras, "ink")
    sound = lora(folder, 20)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        taking.copy(sound, loras, "ink")
    assert list(loras.iterdir()) == []


def test_a_folder_is_deleted_and_no_other(tmp_path: Path) -> None:
    gone, other = run(tmp_path, "ink-00000001"), run(tmp_path, "ink-00000002")
    lora(gone, 10)
    (tmp_path / f".{'0' * 16}.deleted").mkdir()
    (tmp_path / ".mine.deleted").mkdir()
    taking.remove(gone)
    assert {path.name for path in tmp_path.iterdir()} == {other.name, ".mine.deleted"}


def test_what_a_link_in_it_leads_to_stays(tmp_path: Path) -> None:
    folder = run(tmp_path, "ink-00000001")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    link(folder / "previews", tmp_path / "kept")
    taking.remove(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]


def test_one_that_is_training_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path)
    with locked(folder / ".lock", ""), pytest.raises(ValueError, match="stop"):
        taking.remove(folder)
    assert (folder / "run.json").is_file()
    taking.remove(folder)
    assert not folder.exists()


def test_a_disk_that_keeps_a_file_does_not_bring_the_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(taking.shutil, "rmtree", lambda *_, **__: None)
        taking.remove(folder)
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    taking.remove(run(tmp_path, "ink-00000002"))
    assert list(tmp_path.iterdir()) == []
