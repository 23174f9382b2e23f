"""Files for and from diffusers: the same network in both gives the same output with the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness.calls import relative_error, run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.save_lora import SaveLora
from peft import LoraConfig as PeftConfig
from tiny.twin import TWINS, Twin

import nodes

Row = tuple[str, float, float]
SAME = 1e-5
WITH_NAMES = [family for family in TWINS if family not in tiny.WITHOUT_DIFFUSERS]
# Files in other formats that diffusers reads by itself, with the layers that it knows the names of.
OTHER_FORMATS = [
    ("sd15_full", "kohya", "linear+conv"),
    ("sdxl", "kohya", "linear+conv"),
    ("flux2", "kohya", "attention+mlp"),
    ("zimage", "kohya", "attention+mlp"),
    ("qwen_image", "kohya", "linear+conv"),
    ("qwen_image", "comfyui", "linear+conv"),
    ("wan21", "kohya", "attention+mlp"),
    ("wan21", "comfyui", "attention+mlp"),
]
# Layers outside the blocks for which ComfyUI has no name of diffusers.
NAMELESS = {"chroma": "6 of 29", "flux2": "3 of 29"}


def twin_of(family: str, model: Any) -> Twin:
    """The network of a MODEL in diffusers, patches and all."""
    twin = TWINS[family](model)
    assert relative_error(twin.of_comfy(model), twin()) < SAME, "the twins are the same network"
    return twin


def save(adapter: Adapter, model: Any, format: str, name: str = "saved") -> str:
    return run_node(SaveLora, adapter=adapter, model=model, name=name, format=format, dtype="fp32")[0]


def core(model: Any, *rows: Row) -> Any:
    """MODEL from a chain of ComfyUI's own nodes."""
    for file, strength, _ in rows:
        (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, strength)
    return model


def stacked(model: Any, *rows: Row) -> Any:
    """MODEL from our own node, which has applied every key."""
    off = {"lora_1": "None", "strength_1": 1.0, "text_strength_1": 1.0}
    model, _, _, report, _ = run_node(LoadLoraStack, model=model, lora_stack=list(rows), **off)
    assert "not applied" not in report
    return model


# -- written by us -----------------------------------------------------------------------------------------------------


@pytest.mark.verifies("In diffusers", "diffusers")
@pytest.mark.parametrize("family", WITH_NAMES)
def test_diffusers_reads_our_file(models, loras: Path, random_adapter, caplog, family: str) -> None:
    model = models(family).model
    preset = "attention+mlp" if family in NAMELESS else "linear+conv"
    name = save(random_adapter(model, preset=preset, size=0.5), model, "diffusers")
    assert_read(family, model, loras, name, caplog)


@pytest.mark.parametrize("family", NAMELESS)
def test_layers_without_a_name_are_refused(models, loras: Path, random_adapter, family: str) -> None:
    model = models(family).model
    adapter = random_adapter(model, preset="linear+conv")
    with pytest.raises(ValueError, match=f"no diffusers name for {NAMELESS[family]} layers, .*; save in the"):
        save(adapter, model, "diffusers")
    assert not list(loras.iterdir())


@pytest.mark.verifies("In diffusers", "{style}")
@pytest.mark.parametrize(("family", "style", "preset"), OTHER_FORMATS)
def test_diffusers_reads_our_other_formats(
    models, loras: Path, random_adapter, caplog, family: str, style: str, preset: str
) -> None:
    model = models(family).model
    name = save(random_adapter(model, preset=preset, size=0.5), model, style)
    assert_read(family, model, loras, name, caplog)


def assert_read(family: str, model: Any, loras: Path, name: str, caplog) -> None:
    twin = twin_of(family, model)
    plain = twin()
    twin.load_lora(loras / name)
    assert "unexpected keys" not in caplog.text
    assert relative_error(twin(), plain) > 0.02, "the LoRA must be seen"
    assert relative_error(twin.of_comfy(core(model, (name, 1.0, 0.0))), twin()) < SAME
    assert relative_error(twin.of_comfy(stacked(model, (name, 1.0, 0.0))), twin()) < SAME


# -- written by diffusers ----------------------------------------------------------------------------------------------


def write_peft(twin: Twin, loras: Path) -> str:
    """What diffusers saves of an adapter of all linear layers: its own spelling, q, k and v with factors of their own,
    alpha in the header, and the same rank in a weight that cannot have it. ComfyUI's loader ignores that alpha, and
    knows no such name in a UNet, Wan, Lumina 2 or Anima."""
    inside = [name for name, module in twin.network.named_modules() if isinstance(module, torch.nn.Linear)]
    torch.manual_seed(0)
    twin.network.add_adapter(PeftConfig(r=4, lora_alpha=6, target_modules=inside, init_lora_weights=False))
    return twin.save_lora(loras)


@pytest.mark.verifies("In diffusers", "back")
@pytest.mark.parametrize("family", TWINS)
def test_we_read_what_diffusers_writes(models, loras: Path, family: str) -> None:
    model = models(family).model
    twin = twin_of(family, model)
    name = write_peft(twin, loras)
    assert relative_error(twin.of_comfy(stacked(model, (name, 1.0, 0.0))), twin()) < SAME
    assert relative_error(twin.of_comfy(model), twin()) > 0.02, "the LoRA must be seen"


@pytest.mark.parametrize("family", TWINS)
def test_all_formats_in_one_stack_and_one_merge(models, loras: Path, random_adapter, family: str) -> None:
    """The truth is ComfyUI's chain for its own format and kohya's, and diffusers on top of that for diffusers' file."""
    model = models(family).model
    native = save(random_adapter(model, 4, 3.0, 1, "attention+mlp", 0.3), model, "comfyui", "native")
    kohya = save(random_adapter(model, 6, 1.0, 2, "attention+mlp", 0.3), model, "kohya", "kohya")
    first = [(native, 0.8, 0.0), (kohya, -0.6, 0.0)]
    third = write_peft(TWINS[family](model), loras)
    twin = twin_of(family, core(model, *first))
    twin.load_lora(loras / third)
    rows = [*first, (third, 1.0, 0.0)]
    assert relative_error(twin.of_comfy(stacked(model, *rows)), twin()) < SAME
    merged = run_node(MergeLora, model=model, lora_stack=rows, adapters={}, strengths="", rank=0)[0]
    named = family in WITH_NAMES and family not in NAMELESS
    for style in ("comfyui", "kohya", *(["diffusers"] if named else [])):
        name = save(merged, model, style, f"merged {style}")
        assert relative_error(twin.of_comfy(core(model, (name, 1.0, 0.0))), twin()) < SAME, style
