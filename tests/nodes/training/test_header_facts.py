"""Checks what a trained LoRA file says about itself, and to whom: header, preview, and the hash of the base model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import tiny
import torch
from app.model_manager import ModelFileManager
from harness.calls import run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.data.dataset import combined
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.metadata import build
from lora_loom.lora_core.runs.recipe_json import RecipeRecord
from lora_loom.lora_core.training.config import LoraConfig, OptimizerConfig, Recipe, TextConfig, TrainConfig
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.nodes.bridge.host import model_files
from lora_loom.nodes.bridge.host.progress import Progress
from lora_loom.nodes.bridge.training.header_facts import run_facts
from lora_loom.nodes.bridge.training.order import Run, Sources
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.optimizer import TrainingOptimizer
from lora_loom.nodes.save_lora import SaveLora
from lora_loom.nodes.train_lora import TrainLora
from PIL import Image


@pytest.fixture
def data(tmp_path: Path, write_pictures: Callable[[Path], Path]) -> Any:
    """Four pictures of Jane in two buckets."""
    folder = write_pictures(tmp_path / "Jane Doe")
    for path in folder.glob("*.txt"):
        path.write_text(f"Jane, {path.stem} hats", encoding="utf-8")
    return run_node(LoraDataset, folder=str(folder), trigger="Sks", resolution=64, repeats=3, bucket_step=16)[0]


@pytest.fixture(autouse=True)
def _emptied(comfy_base: Path) -> Iterator[None]:
    yield
    shutil.rmtree(comfy_base / "output" / "lora_loom", ignore_errors=True)
    shutil.rmtree(folder_paths.get_system_user_directory("lora_loom"), ignore_errors=True)
    comfy.model_management.interrupt_current_processing(False)


def train(trio: tiny.Loaded, data: Any, **changes: Any) -> Any:
    inputs = {
        "steps": 2, "rank": 2, "alpha": 3.0, "learning_rate": 1e-3, "targets": "attention", "seed": 7, "batch_size": 2,
        "accumulation": 2, "run_name": "run", **changes,
    }  # fmt: skip
    return run_node(TrainLora, model=trio.model, clip=trio.clip, vae=trio.vae, dataset=data, **inputs)[2]


def saved(adapter: Any, trio: tiny.Loaded, folder: Path, **more: Any) -> tuple[dict[str, str], str]:
    """The header's text and the report."""
    inputs = {"name": "it", "format": "comfyui", "dtype": "fp32", "overwrite": True, **more}
    name, report = run_node(SaveLora, adapter=adapter, model=trio.model, clip=trio.clip, **inputs)
    return guard.inspect(folder / name).metadata, report


# -- the run -----------------------------------------------------------------------------------------------------------


def test_settings_in_the_file_are_those_of_the_run(models, data, loras: Path) -> None:
    trio = models("sd15")
    (optimizer,) = run_node(
        TrainingOptimizer, optimizer="lion", lr_schedule="rex", warmup=1, weight_decay=0.1, restarts=1, beta1=0.0,
        beta2=0.0, eps=0.0, max_grad_norm=1.0, ema_decay=0.0,
    )  # fmt: skip
    adapter = train(
        trio, data, optimizer=optimizer, text_rank=2, text_learning_rate=1e-4, preserve="dog, hound", preservation=0.5,
        weighting="min_snr", timesteps="shifted", shift=2.0, include="time_embed*", caption_dropout=0.25,
        gradient_checkpointing=False, quiet="off",
    )  # fmt: skip
    header, _ = saved(adapter, trio, loras)
    read = RecipeRecord.from_json(header["lora_loom.settings"])
    recipe = read.recipe
    assert recipe.lora == LoraConfig(2, 3.0, "attention", ("time_embed*",), ())
    assert recipe.train == TrainConfig(
        2, 1e-3, 2, 2, 7, optimizer, ObjectiveConfig(weighting="min_snr", timesteps="shifted", shift=2.0), 0.25, 0.5
    )
    assert optimizer == OptimizerConfig("lion", "rex", 1, weight_decay=0.1)
    assert recipe.text == TextConfig(2, 1e-4)
    assert recipe.preserve == ("dog", "hound") and read.base["clip_layer"] == trio.clip.layer_idx
    (one,) = read.dataset["sets"]
    assert one["pictures"] == " ".join(each.digest[:16] for each in data.examples)
    assert (one["trigger"], one["repeats"], one["bucket_step"], one["options"]["crops"]) == ("Sks", 3, 16, 0)
    assert read.dataset["fingerprint"] == data.fingerprint() and read.dataset["resolutions"] == [64]
    assert read.base["family"] == "SD 1.5" and read.base["patches"] == 0
    assert read.base["files"]["model"] == ["sd15.safetensors"] and "/" not in str(read.base["files"])
    assert read.software["torch"] == torch.__version__ and read.software["comfyui"].count(".") == 2
    for name in ("numpy", "pillow", "comfy-kitchen", "transformers"):
        assert read.software[name] == importlib.metadata.version(name)


def test_keys_of_sd_scripts_for_the_data(models, data, loras: Path) -> None:
    header, _ = saved(train(models("flux1"), data), models("flux1"), loras)
    tags = {"Sks": 4, "jane": 4, "0 hats": 1, "1 hats": 1, "2 hats": 1, "3 hats": 1}
    assert json.loads(header["ss_tag_frequency"]) == {"Jane Doe": tags}
    assert json.loads(header["ss_dataset_dirs"]) == {"Jane Doe": {"n_repeats": 3, "img_count": 4}}
    assert list(json.loads(header["ss_tag_frequency"])["Jane Doe"])[0] == "Sks"
    (subset,) = json.loads(header["ss_datasets"])[0]["subsets"]
    wanted = {"image_dir": "Jane Doe", "class_tokens": "Sks", "num_repeats": 3, "img_count": 4, "is_reg": False}
    assert subset == wanted
    buckets = json.loads(header["ss_bucket_info"])["buckets"].values()
    assert sum(each["count"] for each in buckets) == 12 == int(header["ss_num_train_images"])
    assert {tuple(each["resolution"]) for each in buckets} == data.buckets().keys()
    assert header["ss_output_name"] == "it" and header["modelspec.title"] == "run"
    assert (header["ss_num_batches_per_epoch"], header["ss_num_epochs"], header["ss_epoch"]) == ("6", "1", "1")


def test_redact_and_the_runs_own_file_tell_nothing_of_the_pictures(models, data, loras: Path, comfy_base: Path) -> None:
    trio = models("flux1")
    adapter = train(trio, data)
    whole, _ = saved(adapter, trio, loras)
    assert "jane" in str(whole).lower(), "else the test shows nothing"
    (own,) = (comfy_base / "output" / "lora_loom").rglob("step_*.safetensors")
    for header in (saved(adapter, trio, loras, captions="redact")[0], guard.inspect(own).metadata):
        text = str(header).lower()
        assert not any(secret in text for secret in ("jane", "hats", data.examples[0].digest[:16], data.fingerprint()))
        assert json.loads(header["ss_tag_frequency"]) == {"trigger": {"Sks": 1}}
        assert RecipeRecord.from_json(header["lora_loom.settings"]).recipe.train.seed == 7


def test_what_the_maker_adds(models, random_adapter, loras: Path) -> None:
    trio = models("flux1")
    words = {"author": "me", "license": "CC0-1.0", "description": "Ink.\nBlack.", "usage_hint": "0.7", "tags": "ink,b"}
    header, _ = saved(random_adapter(trio.model), trio, loras, **words)
    assert {name: header[f"modelspec.{name}"] for name in words} == {**words, "tags": "ink, b"}


# -- the preview -------------------------------------------------------------------------------------------------------


def preview(width: int, height: int) -> torch.Tensor:
    """Two pictures, the first of which is wanted, with noise so that it does not compress."""
    noise = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(0))
    noise[0, :, : width // 2] = torch.tensor([1.0, 0.0, 0.0])
    return noise


def test_model_browser_of_comfyui_shows_the_preview(models, random_adapter, loras: Path) -> None:
    trio = models("flux1")
    header, report = saved(random_adapter(trio.model), trio, loras, preview=preview(4096, 2048))
    assert "left out" not in report and len(header["modelspec.thumbnail"]) < 2**18
    (shown,) = ModelFileManager().get_model_previews(str(loras / "it.safetensors"))
    with Image.open(shown) as picture:
        assert picture.size == (512, 256) and picture.getpixel((100, 100))[0] > 200 > 60 > picture.getpixel((100, 1))[1]
    assert int.from_bytes((loras / "it.safetensors").read_bytes()[:8], "little") < 2**20
    assert [path.name for path in loras.iterdir()] == ["it.safetensors"]


def test_side_file(models, random_adapter, loras: Path) -> None:
    trio, adapter = models("flux1"), random_adapter(models("flux1").model)
    choices = {"preview": preview(64, 64), "side_files": True}
    assert "preview in it_v1.5.jpg" in saved(adapter, trio, loras, name="it_v1.5", **choices)[1]
    with Image.open(loras / "it_v1.5.jpg") as picture:
        assert picture.size == (64, 64)
    (loras / "mine.jpg").write_text("mine")
    report = saved(adapter, trio, loras, name="mine", overwrite=False, **choices)[1]
    assert "mine.jpg existed before" in report and (loras / "mine.jpg").read_text() == "mine"
    saved(adapter, trio, loras, name="none", side_files=True)
    assert not (loras / "none.jpg").exists()


# -- the base model ----------------------------------------------------------------------------------------------------


def test_base_model_is_hashed_once(models, data, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trio = models("flux1")
    (path,) = model_files.files_of(trio.model)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    header, _ = saved(train(trio, data), trio, loras)
    assert (header["ss_sd_model_name"], header["ss_new_sd_model_hash"]) == ("flux1.safetensors", digest)
    assert header["modelspec.base_model"] == "flux1.safetensors"

    def fail(*_: Any) -> str:
        raise AssertionError("the file is read again")

    monkeypatch.setattr(model_files, "file_hash", fail)
    again, _ = saved(train(trio, data, resume="start over"), trio, loras)
    assert again == header
    os.utime(path)
    with pytest.raises(AssertionError, match="read again"):
        train(trio, data, resume="start over")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_record_of_hashes_is_made_anew(tmp_path: Path, content: str) -> None:
    record = Path(folder_paths.get_system_user_directory("lora_loom")) / "model_hashes.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    (tmp_path / "a").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert model_files.known_hash(str(tmp_path / "a"), Progress(1)) == digest
    assert json.loads(record.read_text())[str(tmp_path / "a")][2] == digest


def test_hashing_can_be_cancelled(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        model_files.known_hash(str(tmp_path / "a"), Progress(1))
    assert not Path(folder_paths.get_system_user_directory("lora_loom")).exists()


def test_unknown_or_vanished_file_is_no_matter(models, data, loras: Path) -> None:
    trio = models("flux1")
    for init in (None, (print, ()), (print, ({"a": 1},)), (print, ("/nowhere/x.gguf",))):
        model = trio.model.clone()
        model.cached_patcher_init = init
        header, _ = saved(train(replace(trio, model=model), data, resume="start over"), trio, loras)
        assert not {"ss_new_sd_model_hash", "ss_sd_model_hash"} & header.keys()
        assert header.get("ss_sd_model_name") == ("x.gguf" if init and "x.gguf" in str(init) else None)


# -- several sets ------------------------------------------------------------------------------------------------------


def test_class_images_are_told_apart(models, tmp_path: Path, write_pictures: Callable[[Path], Path]) -> None:
    sets = [
        run_node(LoraDataset, folder=str(write_pictures(tmp_path / name)), repeats=2, bucket_step=16, **choices)[0]
        for name, choices in (
            ("sks", {"trigger": "sks", "resolution": 64, "resolutions": "32, 64", "flip": True}),
            ("dogs", {"trigger": "dog", "resolution": 64, "class_images": True, "weight": 0.5}),
        )
    ]
    trio = models("flux1")
    sources = Sources(trio.model, trio.clip, trio.vae, combined(sets))
    facts = run_facts(sources, Recipe(LoraConfig(), TrainConfig()), Run(), Progress(1))
    header = build(facts, Adapter({}))
    assert json.loads(header["ss_dataset_dirs"]) == {"sks": {"n_repeats": 2, "img_count": 4}}
    assert json.loads(header["ss_reg_dataset_dirs"]) == {"dogs": {"n_repeats": 2, "img_count": 4}}
    assert (header["ss_num_train_images"], header["ss_num_reg_images"]) == ("16", "4")
    assert json.loads(header["ss_tag_frequency"]).keys() == {"sks"}
    read = RecipeRecord.from_json(header["lora_loom.settings"]).dataset
    assert [each["options"]["flip"] for each in read["sets"]] == [True, False]
    assert [each["options"]["weight"] for each in read["sets"]] == [1.0, 0.5]
    assert [each["options"]["resolutions"] for each in read["sets"]] == [[32, 64], []]
