"""A file is written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import save as saving
from lora_loom.lora_core.files.save import save

ROOT = Path(__file__).resolve().parents[3]
TENSORS = {"x.lora_up.weight": torch.ones(4, 2), "x.lora_down.weight": torch.ones(2, 8)}

KILLED = """
import os, sys
sys.path.insert(0, {root!r})
import torch
from lora_core.files import save as saving
{break_it}
saving.save({path!r}, {{"x": torch.zeros(300_000)}}, overwrite=True)
print("saved")
"""


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_same_content_same_bytes(tmp_path: Path):
    text = {f"key{i}": str(i) for i in range(40)}
    save(tmp_path / "a.safetensors", TENSORS, text)
    save(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), dict(reversed(text.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_an_existing_file_is_kept_unless_overwriting(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    first = save(path, TENSORS)
    with pytest.raises(FileExistsError, match="a.safetensors exists .* switch overwrite on"):
        save(path, {"y": torch.zeros(3)})
    assert path.stat().st_size == first.size
    assert save(path, {"y": torch.zeros(3)}, overwrite=True).model_hash != first.model_hash
    assert files(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), SystemExit()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(
    error: BaseException, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.safetensors"
    save(path, TENSORS)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        assert len(files(tmp_path)) == 2, "the failure must come while the temporary file is there"
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        save(path, {"y": torch.zeros(3)}, overwrite=True)
    assert path.read_bytes() == before and files(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("break_it", [
    "saving.os.fsync = lambda _: os._exit(9)",
    "saving.os.replace = lambda *_: os._exit(9)",
], ids=["after writing", "before renaming"])  # fmt: skip
def test_killed_in_the_middle_the_old_file_stands(break_it: str, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save(path, TENSORS)
    before = path.read_bytes()
    script = KILLED.format(root=str(ROOT), path=str(path), break_it=break_it)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 9 and "saved" not in done.stdout, done.stderr
    assert path.read_bytes() == before
    left = [name for name in files(tmp_path) if name != path.name]
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left), "no loader lists such a name"


def test_the_data_is_on_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps = []
    synced, replaced = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), synced(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("replace"), replaced(*paths)))
    save(tmp_path / "a.safetensors", TENSORS)
    assert steps[:2] == ["fsync", "replace"]


def test_a_header_above_a_mebibyte_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"above the 1048576 .*largest: thumb\)"):
        save(tmp_path / "a.safetensors", TENSORS, {"thumb": "x" * 2**20, "b": "c"})
    assert files(tmp_path) == []


def test_stale_text_is_not_carried_over(tmp_path: Path):
    stale = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "lora_adapter_metadata": '{"lora_alpha": 9}'}
    saved = save(tmp_path / "a.safetensors", TENSORS, {**stale, "k": "v"})
    head, _ = saving._header(saved.path, saving.pack(TENSORS), {"k": "v"}, saving.unsealed)
    assert saved.path.read_bytes().startswith(head)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_file_gets_the_usual_rights(tmp_path: Path):
    saved = save(tmp_path / "a.safetensors", TENSORS)
    (tmp_path / "plain").touch()
    assert saved.path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_metadata_that_is_not_text_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="metadata 'steps' is int"):
        save(tmp_path / "a.safetensors", TENSORS, {"steps": 400})
    assert files(tmp_path) == []


def test_the_longest_name_can_be_written(tmp_path: Path):
    save(tmp_path / ("\u65e5" * 80 + ".safetensors"), TENSORS)


def test_a_missing_folder_is_an_error_of_its_own(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "none" / "a.safetensors", TENSORS)
