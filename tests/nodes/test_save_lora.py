"""Save LoRA writes what was trained, as ComfyUI's own loaders see it; test_diffusers.py does the same in diffusers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import tiny
import torch
from harness.calls import encode, loaded, relative_error, run_node, sampled
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats, guard
from lora_loom.nodes.bridge.merging import save as export
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.save_lora import SaveLora
from torch import Tensor

import nodes

FAMILIES = ["sd15", "sd15_full", "flux1", "flux1_schnell", "wan_demo", *tiny.MORE]
PRESETS = {"sd15": "linear+conv", "sd15_full": "linear+conv"}


def save(adapter: Adapter, model: Any, name: str = "saved", format: str = "comfyui", dtype: str = "fp32", **more: Any):
    return run_node(SaveLora, adapter=adapter, model=model, name=name, format=format, dtype=dtype, **more)


def core(model: Any, file: str, strength: float = 1.0) -> Any:
    """MODEL from ComfyUI's own node."""
    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, strength)[0]


def stacked(model: Any, file: str, strength: float = 1.0) -> tuple[Any, str]:
    """MODEL and report from our own node."""
    out = run_node(LoadLoraStack, model=model, lora_1=file, strength_1=strength, text_strength_1=1.0)
    return out[0], out[3]


# -- ComfyUI's own loader ----------------------------------------------------------------------------------------------


@pytest.mark.verifies("Files", "{style}")
@pytest.mark.parametrize(
    ("family", "style"),
    [
        (family, style)
        for family in FAMILIES
        for style in ("comfyui", "kohya", "diffusers")
        if style != "diffusers" or family not in tiny.NOT_BY_COMFYUI
    ],
)
def test_core_loader_applies_every_layer(models, loras: Path, random_adapter, caplog, family: str, style: str) -> None:
    model = models(family).model
    adapter = random_adapter(model, preset=PRESETS.get(family, "attention+mlp"))
    name, report = save(adapter, model, format=style)
    assert f", 0 unmatched, {len(adapter.layers)} layers applied" in report
    before, by_core, by_us = loaded(model), loaded(core(model, name)), loaded(stacked(model, name)[0])
    assert "NOT LOADED" not in caplog.text and "lora key not loaded" not in caplog.text
    changed = {key for key in before if not torch.equal(before[key], by_core[key])}
    assert changed == {f"{layer}.weight" for layer in adapter.layers}
    for layer, low_rank in adapter.layers.items():
        key = f"{layer}.weight"
        delta = low_rank.to(torch.float64).delta_weight()
        assert relative_error(by_core[key].double() - before[key], delta) < 1e-4, key
        assert relative_error(by_us[key].double() - before[key], delta) < 1e-4, key


@pytest.mark.parametrize("family", tiny.DIFFUSERS_ALONE)
def test_a_file_that_only_our_stack_reads_says_so(models, loras: Path, random_adapter, family: str) -> None:
    model = models(family).model
    adapter = random_adapter(model)
    name, report = save(adapter, model, format="diffusers")
    assert "with Load LoRA Stack (ComfyUI's own loader does not read this format of " in report
    assert f"0 unmatched, {len(adapter.layers)} layers applied" in report
    kept, by_us = loaded(core(model, name)), loaded(stacked(model, name)[0])
    assert any(not torch.equal(value, by_us[key]) for key, value in kept.items()), "ComfyUI's passes it over"


@pytest.mark.parametrize("family", tiny.WITHOUT_DIFFUSERS)
def test_families_that_diffusers_has_no_names_for(models, loras: Path, random_adapter, family: str) -> None:
    model = models(family).model
    with pytest.raises(ValueError, match=" has no diffusers name for .* save in the 'comfyui' format"):
        save(random_adapter(model), model, format="diffusers")


@pytest.mark.parametrize("family", ["sd15", "flux1", "wan_demo"])
def test_pictures_are_those_of_the_core_loader(models, loras: Path, random_adapter, family: str) -> None:
    trio = models(family)
    name, _ = save(random_adapter(trio.model, size=0.5), trio.model)
    text, latent = encode(trio.clip, "a red heart"), empty_latent(trio.model)
    plain = sampled(trio.model, text, latent)
    by_core, by_us = (
        sampled(core(trio.model, name, 0.7), text, latent),
        sampled(stacked(trio.model, name, 0.7)[0], text, latent),
    )
    assert relative_error(by_core, plain) > 0.01, "the LoRA must be seen"
    assert relative_error(by_us, by_core) < 1e-5


def empty_latent(model: Any) -> Tensor:
    return torch.zeros(tiny.latent_shape(model))


@pytest.mark.parametrize(("dtype", "limit"), [("fp16", 1e-3), ("bf16", 8e-3), ("fp32", 1e-6)])
def test_rounding_of_each_dtype(models, loras: Path, random_adapter, dtype: str, limit: float) -> None:
    adapter = random_adapter(models("flux1").model)
    name, report = save(adapter, models("flux1").model, dtype=dtype)
    assert float(re.search(r"relative error (\S+)", report)[1]) < limit
    assert {info.dtype for key, info in guard.inspect(loras / name).tensors.items() if "alpha" not in key} == {
        {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}[dtype]
    }


# -- a file that would not load is an error ----------------------------------------------------------------------------


def wrong_alpha(tensors: dict[str, Tensor]) -> None:
    next(value for key, value in tensors.items() if key.endswith(".alpha")).mul_(1.01)


def lost_layer(tensors: dict[str, Tensor]) -> None:
    layer = next(iter(tensors)).removesuffix(".lora_down.weight")
    for key in [key for key in tensors if key.startswith(layer)]:
        del tensors[key]


def strange_name(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if ".to_q." in key]:
        tensors[key.replace(".to_q.", ".to_query.")] = tensors.pop(key)


def swapped_rows(tensors: dict[str, Tensor]) -> None:
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[key] = tensors[key].flip(0).contiguous()


def no_number(tensors: dict[str, Tensor]) -> None:
    key = [key for key in tensors if key.endswith("lora_up.weight")][-1]
    tensors[key] = tensors[key].clone()
    tensors[key][0, 0] = torch.nan


@pytest.mark.parametrize("spoil", [wrong_alpha, lost_layer, strange_name, swapped_rows, no_number])
def test_spoiled_export_is_caught(models, loras: Path, random_adapter, monkeypatch, spoil: Callable) -> None:
    model = models("sd15").model
    adapter = random_adapter(model)
    save(adapter, model, "kept")
    before, encode_well = (loras / "kept.safetensors").read_bytes(), formats.encode

    def encode_badly(*args: Any) -> dict[str, Tensor]:
        tensors = encode_well(*args)
        spoil(tensors)
        return tensors

    monkeypatch.setattr(export.formats, "encode", encode_badly)
    with pytest.raises(ValueError, match="the file does not load correctly"):
        save(adapter, model, "kept", overwrite=True)
    assert [path.name for path in loras.iterdir()] == ["kept.safetensors"]
    assert (loras / "kept.safetensors").read_bytes() == before, "the older file of that name stays"


def test_values_that_do_not_fit_fp16(models, loras: Path, random_adapter) -> None:
    model = models("sd15").model
    with pytest.raises(ValueError, match="save as bf16 or fp32"):
        save(random_adapter(model, size=1e12), model, dtype="fp16")
    assert not list(loras.iterdir())


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_folders_numbers_and_overwriting(models, loras: Path, random_adapter) -> None:
    model = models("flux1").model
    adapter = Adapter(random_adapter(model).layers, {"modelspec.title": "ink", "ss_steps": "7"})
    names = [save(adapter, model, "styles/%title%_%rank%_%steps%")[0] for _ in range(3)]
    assert [name.replace("\\", "/") for name in names] == [
        "styles/ink_4_7.safetensors", "styles/ink_4_7_0002.safetensors", "styles/ink_4_7_0003.safetensors",
    ]  # fmt: skip
    assert save(adapter, model, "styles/ink_4_7", overwrite=True)[0] == names[0]
    assert len(list(loras.rglob("*"))) == 4
    assert all(stacked(model, name)[1] for name in names), "the name is the one that loaders list"


TITLES = [
    "../../escape",
    "/etc/x",
    "C:\\x",
    "Ink: Style v2",
    "a\nb",
    "con",
    "x" * 250,
    "\u58a8" * 120,
    "...",
    "50%rank%",
]


@pytest.mark.parametrize("title", TITLES, ids=range(len(TITLES)))
def test_any_title_is_saved_in_the_folder(models, loras: Path, random_adapter, title: str) -> None:
    """Save LoRA's own default name never fails after a training."""
    model = models("flux1").model
    adapter = Adapter(random_adapter(model).layers, {"modelspec.title": title, "modelspec.trigger_phrase": title})
    for name in ("%title%_%rank%", "%title%", "%trigger%/%title%"):
        saved_as, _ = save(adapter, model, name)
        assert (loras / saved_as).is_file() and stacked(model, saved_as)[1]
    assert {path.suffix for path in loras.rglob("*") if path.is_file()} == {".safetensors"}


@pytest.mark.parametrize("name", ["../%title%", "/%title%", "a/../../b", "C:/x", "x" * 190])
def test_what_was_typed_is_refused_before_anything_runs(name: str) -> None:
    assert "use a plain name" in SaveLora.validate_inputs(name)
    assert SaveLora.validate_inputs("%title%_%rank%") is True and SaveLora.validate_inputs(None) is True


@pytest.mark.skipif(os.name == "nt", reason="creating links needs rights on Windows")
def test_folders_may_be_links(models, loras: Path, random_adapter, tmp_path: Path, monkeypatch) -> None:
    """`models/loras` itself, as many have it on another disk, and those in it."""
    model = models("flux1").model
    for place in ("disk", "other disk"):
        (tmp_path / place).mkdir()
    (tmp_path / "loras").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "styles").symlink_to(tmp_path / "other disk", target_is_directory=True)
    folders, suffixes = folder_paths.folder_names_and_paths["loras"]
    linked = ([str(tmp_path / "loras"), *folders], suffixes)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", linked)
    adapter = random_adapter(model)
    names = [
        save(adapter, model, name)[0].replace("\\", "/") for name in ("ink", "ink", "styles/ink", "styles/deep/ink")
    ]
    assert names == ["ink.safetensors", "ink_0002.safetensors", "styles/ink.safetensors", "styles/deep/ink.safetensors"]
    assert (tmp_path / "disk" / "ink.safetensors").is_file() and (
        tmp_path / "other disk" / "deep" / "ink.safetensors"
    ).is_file()
    assert all(stacked(model, name)[1] for name in names), "the names are those that loaders list"
