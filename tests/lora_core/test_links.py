"""A link is told from what it leads to, also where Python takes it for a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.links import link
from lora_loom.lora_core.links import is_link


def test_a_link_is_one_wherever_it_leads(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, to in (("to file", "file"), ("to folder", "."), ("to nothing", "gone"), ("to itself", "to itself")):
        link(tmp_path / name, tmp_path / to)
    assert [path.name for path in sorted(tmp_path.iterdir()) if not is_link(path)] == ["file"]
    assert not is_link(tmp_path) and not is_link(tmp_path / "gone")


def test_a_junction_is_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows tells of one; of a cloud's placeholder, which is the file itself, it tells with another tag."""
    for tag, wanted in ((0xA0000003, True), (0x9000001A, False)):
        told = SimpleNamespace(st_mode=stat.S_IFDIR, st_reparse_tag=tag)
        monkeypatch.setattr(os, "lstat", lambda path, told=told: told)
        assert is_link(tmp_path) is wanted
