"""What a browser is told of the server's folders: names below them, and no more."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
from lora_loom.nodes.bridge.host.folders import run_folder, run_id, without_paths
from lora_loom.nodes.bridge.training.run_progress import RunProgress, known_of, live, running


def test_a_run_is_known_by_its_name_below_the_folder_of_runs(comfy_base: Path) -> None:
    assert run_id(run_folder("ink", "1234abcdef")) == "ink-1234abcd"
    assert run_id(run_folder("styles/ink", "1234abcdef")) == "styles/ink-1234abcd"


def test_no_folder_of_the_server_is_in_a_sentence(comfy_base: Path) -> None:
    folder = run_folder("ink", "1234abcdef")
    roots = folder_paths.get_output_directory(), folder_paths.get_input_directory(), folder_paths.base_path
    for path in (folder, *(Path(root) / "x.png" for root in roots)):
        sentence = without_paths(f"step 5 was not saved: {path} cannot be written (No space left on device)")
        assert f"{path.name} cannot be written" in sentence
        assert not any(root in sentence or os.path.realpath(root) in sentence for root in roots)


def test_why_a_run_failed_is_remembered_and_the_others_are_forgotten(runs: Path) -> None:
    folder, progress = run_folder("ink", "1234abcdef"), RunProgress("ink", 4)
    with pytest.raises(ValueError, match="is full"), progress.watched():
        progress.at(folder, [0.5, 0.25])
        assert live("ink-1234abcd") is progress and known_of("ink-1234abcd")["problem"] == ""
        raise ValueError(f"{folder} is full")
    assert live("ink-1234abcd") is None and running() == []
    told = progress.told()
    assert (told["id"], told["state"], told["step"], told["total"]) == ("ink-1234abcd", "failed", 2, 4)
    assert known_of("ink-1234abcd")["problem"] == told["phase"] and told["phase"].endswith("ink-1234abcd is full")
    for number in range(300):
        with RunProgress("many", 1).watched():
            running()[0].at(run_folder("many", f"{number:08x}"), [])
    assert known_of("ink-1234abcd") == {}


def test_a_run_that_is_cancelled_before_its_folder_says_so(runs: Path) -> None:
    progress = RunProgress("ink", 4)
    with pytest.raises(comfy.model_management.InterruptProcessingException), progress.watched():
        raise comfy.model_management.InterruptProcessingException
    assert (progress.told()["state"], progress.told()["phase"][:31]) == ("stopped", "stopped before the first step; ")
