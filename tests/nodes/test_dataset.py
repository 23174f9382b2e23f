"""LoRA Dataset as a node: pictures from the graph, its report and preview, and when ComfyUI must run nodes again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import folder_paths
import pytest
import torch
from harness.calls import run_node
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.dataset_doctor import DatasetDoctor
from lora_loom.nodes.load_stack import LoadLoraStack

SMALL = {"resolution": 64, "repeats": 2, "bucket_step": 16}


def test_folder_inside_the_input_folder(comfy_base: Path, write_pictures: Callable[[Path], Path]) -> None:
    folder = write_pictures(comfy_base / "input" / "some pictures")
    (folder / "notes.md").write_text("not a picture", encoding="utf-8")
    data, report = run_node(LoraDataset, folder='"some pictures"', trigger="loom", **SMALL)
    shutil.rmtree(folder)
    assert [example.caption for example in data.examples] == [f"loom, picture number {i}" for i in range(4)]
    assert "4 images x 2 repeats" in report and "bucket 64 x 64: 2" in report and "left out notes.md" in report


def test_pictures_from_the_graph() -> None:
    images = torch.rand(3, 50, 100, 3)
    data, _ = run_node(LoraDataset, folder="", trigger="", images=images, captions="one\ntwo\n\nthree\n", **SMALL)
    assert [example.caption for example in data.examples] == ["one", "two", "three"]
    assert data.buckets() == {(80, 48): 3}
    alone, _ = run_node(LoraDataset, folder="", trigger="", images=images, captions="all", **SMALL)
    assert [example.caption for example in alone.examples] == ["all"] * 3
    with pytest.raises(ValueError, match="3 images but 2 captions"):
        run_node(LoraDataset, folder="", trigger="", images=images, captions="one\ntwo", **SMALL)
    with pytest.raises(ValueError, match="empty caption and there is no trigger"):
        run_node(LoraDataset, folder="", trigger="", images=images, captions="", **SMALL)


def test_preview_is_a_picture_on_disk(pictures: Path) -> None:
    with torch.inference_mode():
        shown = LoraDataset.execute(folder=str(pictures), trigger="", **SMALL).ui["images"]
    assert all((Path(folder_paths.get_temp_directory()) / image["filename"]).is_file() for image in shown)


def test_changed_pictures_are_read_again(pictures: Path) -> None:
    before = LoraDataset.fingerprint_inputs(folder=str(pictures))
    assert LoraDataset.fingerprint_inputs(folder=str(pictures), trigger="x") == before
    (pictures / "0.txt").write_text("another caption", encoding="utf-8")
    assert LoraDataset.fingerprint_inputs(folder=str(pictures)) != before
    for unknown in ("", None, str(pictures / "gone")):
        assert LoraDataset.fingerprint_inputs(folder=unknown) == []


@pytest.mark.parametrize("name", ["a.safetensors", "sub/a.safetensors", "sub\\a.safetensors"])
def test_changed_lora_is_read_again(loras: Path, name: str) -> None:
    """Also under a name from a graph made on another system, or without its folder."""
    path = loras / "sub" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"1")
    before = LoadLoraStack.fingerprint_inputs(lora_1=name, lora_2="None", strength_1=1.0)
    path.write_bytes(b"22")
    assert LoadLoraStack.fingerprint_inputs(lora_1=name, lora_2="None", strength_1=1.0) != before
    assert LoadLoraStack.fingerprint_inputs(lora_1=None, lora_2="gone")[1:3] == [(None, 0, 0), ("gone", 0, 0)]


def test_the_doctor_reports_and_marks(pictures: Path) -> None:
    shutil.copy(pictures / "0.png", pictures / "9.png")
    (pictures / "9.txt").write_text("another caption", encoding="utf-8")
    data, _ = run_node(LoraDataset, folder=str(pictures), trigger="loom", **SMALL)
    report, sheet = run_node(DatasetDoctor, dataset=data)
    assert report.splitlines()[1] == "1. 0.png and 9.png are the same picture: keep one, or it counts 2 times."
    assert "5 pictures are few" in report and sheet.shape == (1, 168, 676, 3)
    with torch.inference_mode():
        shown = DatasetDoctor.execute(dataset=data).ui
    assert shown["images"] and shown["text"] == (report,)
