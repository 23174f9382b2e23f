from __future__ import annotations

from pathlib import Path

import pytest
from lora_loom.console.options import read


def test_what_is_not_ours_goes_on_to_comfyui_in_its_order() -> None:
    found = read(["flow.json", "--cpu", "--set", "1.a=2", "--verbose", "DEBUG", "--set", "x=y", "--result", "r.json"])
    assert (found.workflow, found.settings, found.result) == (Path("flow.json"), ("1.a=2", "x=y"), Path("r.json"))
    assert found.flags == ("--cpu", "--verbose", "DEBUG")


def test_what_stands_after_two_dashes_is_comfyuis() -> None:
    assert read(["flow.json", "--cpu", "--", "--set", "z"]).flags == ("--cpu", "--set", "z")


def test_flags_of_ours_are_not_shortened() -> None:
    """--res... may be one of ComfyUI's."""
    assert read(["flow.json", "--reserve-vram", "2", "--resu", "x"]).flags == ("--reserve-vram", "2", "--resu", "x")


def test_without_a_workflow_it_ends_as_bad_input() -> None:
    with pytest.raises(SystemExit) as end:
        read(["--set", "1.a=2"])
    assert end.value.code == 2
