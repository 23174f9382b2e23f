"""Weights that newer versions of ComfyUI make one of two when a model is loaded, as Qwen-Image 2.1's `gate_up` and
projections of text encoders: files have the halves' names, and ComfyUI's key maps say which rows they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.lora
import pytest
import torch
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.bridge.model.names import NameTable

WHOLE, HALVES = ".img_mlp.net.0.proj", (".img_mlp.gate_layer", ".img_mlp.proj")
FUSED = f"diffusion_model.transformer_blocks.0{WHOLE}"
TEXT = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
PREFIXES = ("", "transformer.", "diffusion_model.", "base_model.model.", "lycoris_", "lora_unet_")


def low_rank(rows: int, columns: int, rank: int, seed: int) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    lora_A, lora_B = (torch.randn(*shape, generator=draw) for shape in ((rank, columns), (rows, rank)))
    return LowRank(lora_A, lora_B, 0.5 * rank)


@pytest.fixture
def fused(models: Any, monkeypatch: pytest.MonkeyPatch) -> NameTable:
    """Qwen-Image, one layer of whose feed-forward is known as two, as ComfyUI 0.37 has it: by all but its own name."""
    known = comfy.lora.model_lora_keys_unet

    def named(model: Any, key_map: dict) -> dict:
        found, half = known(model, key_map), model.state_dict()[f"{FUSED}.weight"].shape[0] // 2
        for name, key in list(found.items()):
            for prefix, dot in (("", "."), ("transformer.", "."), ("lycoris_", "_")):
                whole, parts = (WHOLE, HALVES) if dot == "." else (WHOLE.replace(".", "_"), _flat(HALVES))
                if key == f"{FUSED}.weight" and name == f"{prefix}transformer_blocks{dot}0{whole}":
                    del found[name]
                    for part, start in zip(parts, (0, half), strict=True):
                        found[name.removesuffix(whole) + part] = (key, (0, start, half))
        return found

    monkeypatch.setattr(comfy.lora, "model_lora_keys_unet", named)
    return NameTable(models("qwen_image").model)


def _flat(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.replace(".", "_") for name in names)


def halves(table: NameTable) -> dict[str, LowRank]:
    rows, columns = table.shapes[FUSED]
    names = [f"transformer_blocks.0{half}" for half in HALVES]
    return {name: low_rank(rows // 2, columns, rank, rank) for name, rank in zip(names, (2, 3), strict=True)}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("taken", [(0, 1), (0,), (1,)])
def test_the_halves_of_a_fused_layer_are_its_rows(fused: NameTable, prefix: str, taken: tuple[int, ...]) -> None:
    given = [(n, layer) for i, (n, layer) in enumerate(halves(fused).items()) if i in taken]
    spelled = _spelled(prefix)
    resolved = fused.resolve(Adapter({spelled(name): layer for name, layer in given}), "x")
    wanted = torch.zeros(fused.shapes[FUSED])
    for half, (_, layer) in zip(taken, given, strict=True):
        wanted.chunk(2)[half].copy_(layer.delta_weight())
    assert list(resolved.adapter.layers) == [FUSED] and not resolved.unmatched
    assert torch.allclose(resolved.adapter.layers[FUSED].delta_weight(), wanted, rtol=1e-5, atol=1e-6)


def _spelled(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


def test_a_fused_layer_is_written_by_its_halves_for_diffusers(fused: NameTable) -> None:
    """And comes back the same; in ComfyUI's own format it keeps its one name."""
    layer = low_rank(*fused.shapes[FUSED], 4, 7)
    names, half = fused.file_names("peft", [FUSED]), fused.shapes[FUSED][0] // 2
    wanted = [(f"transformer.transformer_blocks.0{name}", at) for name, at in zip(HALVES, (0, half), strict=True)]
    assert [(file.name, file.rows) for file in names[FUSED]] == [(name, (at, half)) for name, at in wanted]
    tensors = formats.encode(Adapter({FUSED: layer}), "peft", names, torch.float32)
    again = fused.resolve(formats.decode(tensors), "x").adapter
    assert torch.allclose(again.layers[FUSED].delta_weight(), layer.delta_weight(), rtol=1e-5, atol=1e-6)
    assert fused.file_names("native", [FUSED])[FUSED][0].name == FUSED


def test_the_halves_of_a_fused_text_layer_are_its_rows(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trio, known = models("sd15"), comfy.lora.model_lora_keys_clip

    def named(model: Any, key_map: dict) -> dict:
        half = model.state_dict()[f"{TEXT}.weight"].shape[0] // 2
        parts = {f"text_encoders.{TEXT[:-3]}{name}": at for name, at in (("gate_proj", 0), ("up_proj", half))}
        return known(model, key_map) | {name: (f"{TEXT}.weight", (0, at, half)) for name, at in parts.items()}

    monkeypatch.setattr(comfy.lora, "model_lora_keys_clip", named)
    table = NameTable(trio.model, trio.clip)
    rows, columns = table.shapes[TEXT_PREFIX + TEXT]
    up = low_rank(rows // 2, columns, 2, 1)
    resolved = table.resolve(Adapter({f"text_encoders.{TEXT[:-3]}up_proj": up}), "x")
    (layer,) = resolved.adapter.layers.values()
    assert list(resolved.adapter.layers) == [TEXT_PREFIX + TEXT] and not resolved.unmatched
    assert torch.allclose(layer.delta_weight()[rows // 2 :], up.delta_weight(), rtol=1e-5, atol=1e-6)
    assert not layer.delta_weight()[: rows // 2].any()
