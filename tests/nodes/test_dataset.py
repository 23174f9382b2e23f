"""LoRA Dataset as a node: pictures from the graph, its report and preview, and when ComfyUI must run nodes again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import folder_paths
import pytest
import tiny
import torch
from comfy.cli_args import args
from harness.calls import run_node
from lora_loom.lora_core.data.captions import literal
from lora_loom.nodes.bridge.host import dataset_asked
from lora_loom.nodes.bridge.host.folders import DATA_SETS, dataset_folder
from lora_loom.nodes.bridge.training.samples import captions_to_encode
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
    assert (
        report.startswith("4 captions, one for every picture\n4 images x 2 repeats")
        and "bucket 64 x 64: 2" in report
        and "left out notes.md" in report
    )


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


# --- folders ---


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(args, "listen", "127.0.0.1,0.0.0.0")


def refusal(folder: object) -> str:
    """Return the refusal by validation, which says the same as the execution; "" when it refuses nothing."""
    told = LoraDataset.validate_inputs(folder=str(folder), trigger="sks", resolution=64, bucket_step=16)
    if told is not True:
        with pytest.raises(ValueError, match="folder") as raised:
            run_node(LoraDataset, folder=str(folder), trigger="sks", **SMALL)
        assert str(raised.value) == told
        assert LoraDataset.fingerprint_inputs(folder=str(folder)) == []
    return "" if told is True else told


def test_relative_folders_are_below_input_or_datasets(comfy_base: Path, write_pictures) -> None:
    (root,) = folder_paths.get_folder_paths("datasets")
    Path(root).mkdir(exist_ok=True)
    folder = write_pictures(Path(root) / "loom set")
    assert dataset_folder("loom set") == folder and refusal("loom set") == ""
    first = write_pictures(comfy_base / "input" / "loom set")
    assert dataset_folder("loom set") == first
    for each in (folder, first):
        shutil.rmtree(each)
    assert dataset_folder("loom set") == first, "where an error is told"


def test_a_name_that_no_disk_takes_tells_no_place(comfy_base: Path) -> None:
    name = "a" * 300
    told = refusal(name)
    assert name in told and str(comfy_base) not in dataset_asked.words(ValueError(told), name)
    assert "cannot be found" not in told or str(comfy_base) not in told
    assert str(comfy_base) not in dataset_asked.words(ValueError(f"{comfy_base / 'input' / 'x'} is no picture"))


def test_a_server_for_this_machine_alone_reads_any_folder(monkeypatch, pictures: Path) -> None:
    for listen in ("127.0.0.1", "127.0.0.1,::1", "localhost", "127.2.2.2"):
        monkeypatch.setattr(args, "listen", listen)
        assert refusal(pictures) == ""


@pytest.mark.parametrize("listen", ["0.0.0.0,::", "0.0.0.0", "::", "192.168.1.5", "127.0.0.1,10.0.0.1", "my-machine"])
def test_a_server_for_others_refuses_folders_elsewhere(monkeypatch, pictures: Path, listen: str) -> None:
    monkeypatch.setattr(args, "listen", listen)
    for folder in (pictures, pictures / "gone", "/", "../..", "~", f"{folder_paths.get_input_directory()}/../.."):
        told = refusal(folder)
        assert (
            "is outside ComfyUI's input, output and datasets folders, which is not allowed while other machines" in told
        )
        assert "extra_model_paths.yaml" in told and f"lora_loom:\n    {DATA_SETS}: /the/folder" in told


def test_a_server_for_others_reads_comfyuis_own_folders_and_what_was_allowed(
    listening, comfy_base: Path, write_pictures, pictures: Path
) -> None:
    for root in (folder_paths.get_input_directory(), folder_paths.get_output_directory()):
        folder = write_pictures(Path(root) / "own")
        assert refusal(folder) == "" and (Path(root).name != "input" or refusal("own") == "")
        shutil.rmtree(folder)
    folder_paths.add_model_folder_path(DATA_SETS, str(pictures.parent))
    try:
        assert refusal(pictures) == "" and refusal(pictures.name) == ""
    finally:
        del folder_paths.folder_names_and_paths[DATA_SETS]
    assert refusal(pictures)


def test_links_that_lead_out_are_refused_there(monkeypatch, comfy_base: Path, write_pictures, pictures: Path) -> None:
    inside = write_pictures(comfy_base / "input" / "linked")
    (comfy_base / "input" / "way out").symlink_to(pictures, target_is_directory=True)
    (inside / "9.png").symlink_to(pictures / "0.png")
    try:
        assert refusal("linked") == refusal("way out") == ""
        monkeypatch.setattr(args, "listen", "0.0.0.0")
        assert refusal("way out").startswith("the folder way out is a link to a place outside ComfyUI's input")
        assert refusal("linked").startswith("9.png in the folder linked is a link to a place outside")
    finally:
        (comfy_base / "input" / "way out").unlink()
        shutil.rmtree(inside)


@pytest.mark.parametrize("folder", ["a\0b", "x" * 5000, "/" + "x" * 5000, "~nobody-of-that-name/x", "*"])
def test_names_of_folders_that_cannot_be(folder: str) -> None:
    assert "folder" in refusal(folder)


# --- parentheses ---


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux", "anima", "wan", "kandinsky5", "flux2"])
def test_parentheses_reach_every_text_encoder_as_text(kind: str, tmp_path: Path, write_pictures) -> None:
    caption = "a picture (blue), the words (red:1.4)"
    folder = write_pictures(tmp_path / "set")
    for path in folder.glob("*.txt"):
        path.write_text(caption, encoding="utf-8")
    (prompt,) = captions_to_encode(run_node(LoraDataset, folder=str(folder), trigger="", **SMALL)[0], ()) - {""}
    tokenize = tiny.make_clip(kind).tokenize
    tokens = tokenize(prompt)
    weights = {item[1] for sections in tokens.values() for section in sections for item in section}
    assert weights == {1.0} and tokens != tokenize(caption.replace("(", "").replace(")", ""))
    weighted = run_node(LoraDataset, folder=str(folder), trigger="", caption_weights=True, **SMALL)[0]
    assert captions_to_encode(weighted, ()) == {"", caption} and prompt == literal(caption)


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
    assert report.splitlines()[1] == "1. 0.png and 9.png are the same picture, which counts 2 times: keep only one."
    assert "there are only 5 pictures" in report and sheet.shape == (1, 168, 676, 3)
    with torch.inference_mode():
        shown = DatasetDoctor.execute(dataset=data).ui
    assert shown["images"] and shown["text"] == (report,)
    told = json.loads(shown["lora_loom"][0])
    assert told["verdict"].startswith("Do not train yet: 1 of 2 findings in 5 pictures")
    assert "same picture" in str(told["tables"])
