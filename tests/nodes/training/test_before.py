"""Checks what is answered about a run that has not begun: the family by a header, counts, and no more than is known."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import folder_paths
import pytest
import tiny
import torch
from demo import shapes
from lora_loom.nodes.bridge.model import header_family
from lora_loom.nodes.bridge.model.names import family_of
from lora_loom.nodes.bridge.training.before import foreseen
from safetensors.torch import load_file, save_file

Models = Callable[[str], tiny.Loaded]
DEMO = {"kind": ["diffusion_models"], "model": ["loom_demo.safetensors"]}


@pytest.mark.parametrize("name", [row.name for row in tiny.FAMILIES.values() if row.stock])
def test_the_header_tells_the_family_that_the_model_has(
    name: str, models: Callable[[str], tiny.Loaded], tmp_path: Path
) -> None:
    found = header_family.look(str(tiny.write_model(tiny.FAMILIES[name], tmp_path)))
    assert found.family == family_of(models(name).model) and found.weights > 0


def test_of_a_checkpoint_the_network_alone_counts(tmp_path: Path) -> None:
    path = tiny.write_model(tiny.FAMILIES["sd15"], tmp_path)
    save_file({**load_file(path), "cond_stage_model.big": torch.zeros(1000)}, tmp_path / "all.safetensors")
    assert header_family.look(str(tmp_path / "all.safetensors")) == header_family.look(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a pickle", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"{}"]
)
def test_a_file_that_is_no_model_tells_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert header_family.look(str(tmp_path / "x.safetensors")) == header_family.ModelFile()


@pytest.mark.parametrize("key", ["input_blocks.0.0.weight", "double_blocks.0.img_attn.norm.key_norm.scale", "x"])
def test_shapes_that_detection_does_not_expect(key: str, tmp_path: Path) -> None:
    save_file({f"model.diffusion_model.{key}": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert header_family.look(str(tmp_path / "x.safetensors")).family is None


@pytest.fixture
def folder() -> Path:
    found = Path(folder_paths.get_input_directory()) / "before"
    shapes.write_dataset(found, "heart", 4, 64, 0)
    (found / "heart_000.txt").unlink()
    return found


def test_what_auto_stands_for_and_the_pictures(folder: Path) -> None:
    asked = {**DEMO, "folder": [folder.name, folder.name, "nowhere"], "trigger": ["heart", ""], "alpha": ["4"]}
    told = foreseen(asked)
    assert told["family"] == "LoRA Loom's demo base" and told["resolution"] == 96
    assert (told["values"]["rank"], told["values"]["alpha"], told["values"]["learning_rate"]) == ("8", "4", "0.003")
    assert told["automatic"] == ["targets", "rank", "learning_rate", "timesteps"]
    assert told["folders"] == [
        {"captioned": 3, "bare": 1, "left_out": 0}, {"captioned": 3, "bare": 0, "left_out": 1}, {"fault": True},
    ]  # fmt: skip
    assert told["memory"]["free"] > 0
    assert foreseen({**DEMO, "optimizer": ["prodigy"]})["values"]["learning_rate"] == "1"
    for quiet, rate in (("auto", "0.009"), ("off", "0.003"), ("directions", "0.009")):
        assert foreseen({**asked, "quiet": [quiet]})["values"]["learning_rate"] == rate
    assert foreseen({**DEMO, "quiet": ["auto"]})["values"]["learning_rate"] == "0.003", "there is no trigger"
    pairs = foreseen({**asked, "quiet": ["auto"], "learns": ["other"]})
    assert pairs["values"]["learning_rate"] == "0.003", "of preference pairs and sliders"


@pytest.mark.parametrize(
    "other",
    [
        {"kind": ["loras"]},
        {"model": ["../loom_demo.safetensors"]},
        {"model": ["/etc/passwd"]},
        {"model": ["x\0"]},
        {"kind": []},
    ],
)
def test_only_what_comfyui_lists_is_looked_at(other: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("lora_loom.nodes.bridge.training.before.look", looked.append)
    assert foreseen({**DEMO, **other})["family"] is None and looked == []


@pytest.mark.parametrize(
    "other", [{"rank": ["x"]}, {"alpha": ["nan"]}, {"rank": ["inf"]}, {"targets": ["all"]}, {"timesteps": [""]}]
)
def test_what_train_lora_does_not_take_is_refused(other: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError):
        foreseen({**DEMO, **other})


def test_a_folder_elsewhere_is_not_counted_for_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes.write_dataset(tmp_path, "heart", 2, 64, 0)
    assert foreseen({"folder": [str(tmp_path)]})["folders"] == [{"captioned": 2, "bare": 0, "left_out": 0}]
    monkeypatch.setattr("comfy.cli_args.args.listen", "0.0.0.0")
    assert foreseen({"folder": [str(tmp_path)]})["folders"] == [{"fault": True}]
