"""What the rows are told of the model that they are connected to: family and blocks, of listed files alone."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import tiny
from lora_loom.lora_core.families.blocks import strengths
from lora_loom.nodes.bridge.stack.connected_model import told
from safetensors.torch import load_file

UNKNOWN = {"family": "", "judged": False, "blocks": [], "presets": {}}
DEMO = "loom_demo.safetensors"


@pytest.mark.parametrize(("name", "presets"), [("sd15", {"composition", "details", "middle"}), ("wan21", set())])
def test_family_blocks_and_presets(
    name: str, presets: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tiny.write_model(tiny.FAMILIES[name], tmp_path)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    found = told("checkpoints", path.name)
    assert found["family"] == {"sd15": "SD 1.5", "wan21": "Wan 2.1"}[name] and found["judged"]
    assert set(found["presets"]) == presets
    layers = [f"diffusion_model.{key.removeprefix('model.diffusion_model.')}" for key in load_file(path)]
    text = ", ".join(f"{block}=0" for block in found["blocks"])
    assert set(strengths(text, layers).values()) == {0}, "all of it, by names that a row may use"


@pytest.mark.parametrize(
    ("folder", "name"),
    [("loras", DEMO), ("diffusion_models", f"../{DEMO}"), ("diffusion_models", "/etc/passwd"), ("", ""),
     ("diffusion_models", "x\0")],
)  # fmt: skip
def test_of_a_file_that_is_not_listed_nothing_is_told(folder: str, name: str) -> None:
    assert told(folder, name) == UNKNOWN
