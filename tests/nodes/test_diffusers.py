"""Files for and from diffusers: the same network in both gives the same output with the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import loaders
from harness import older
from harness.calls import relative_error, run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.nodes.bridge.model.names import names_of
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.save_lora import SaveLora
from peft import LoraConfig as PeftConfig
from safetensors.torch import load_file
from tiny.twin import TWINS, Twin
from transformers import CLIPTextConfig, CLIPTextModel

import nodes

Row = tuple[str, float, float]
SAME = 1e-5
WITH_NAMES = [family for family in TWINS if family not in tiny.WITHOUT_DIFFUSERS]
ONE_OF_EACH = list({TWINS[family]: family for family in reversed(WITH_NAMES)}.values())  # of networks of one class
# Layers outside the blocks for which neither ComfyUI nor diffusers' own reading of its files has a name.
NAMELESS = {
    "chroma": "6 of 29", "flux2": "5 of 29", "wan21": "1 of 27", "wan22_5b": "1 of 27", "ideogram4": "7 of 19",
    "ltxv": "4 of 27",
}  # fmt: skip
# Files in other formats that diffusers reads by itself, and of which targets all layers.
OTHER_FORMATS = [
    ("sd15_full", "kohya", "all targets"),
    ("sdxl", "kohya", "all targets"),
    ("flux2", "kohya", "blocks"),
    ("zimage", "kohya", "blocks"),
    ("qwen_image", "kohya", "all targets"),
    ("qwen_image", "comfyui", "all targets"),
    ("wan21", "kohya", "blocks"),
    ("wan21", "comfyui", "blocks"),
]
CLAIMS = {"all targets": "", "blocks": " (blocks)"}
OF_BLOCKS = [pytest.param(family, " (blocks)" if family in NAMELESS else "", id=family) for family in WITH_NAMES]


def twin_of(family: str, model: Any) -> Twin:
    """The network of a MODEL in diffusers, patches and all."""
    twin = TWINS[family](model)
    assert relative_error(twin.of_comfy(model), twin()) < SAME, "the twins are the same network"
    return twin


def save(adapter: Adapter, model: Any, format: str, name: str = "saved") -> str:
    return run_node(SaveLora, adapter=adapter, model=model, name=name, format=format, dtype="fp32")[0]


def save_told(adapter: Adapter, model: Any, format: str, name: str = "saved") -> tuple[str, str]:
    return run_node(SaveLora, adapter=adapter, model=model, name=name, format=format, dtype="fp32")


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


@pytest.mark.verifies("In diffusers", "diffusers{which}")
@pytest.mark.parametrize(("family", "which"), OF_BLOCKS)
def test_diffusers_reads_our_file(models, loras: Path, random_adapter, caplog, family: str, which: str) -> None:
    model = models(family).model
    for preset in ("attention+mlp",) if which else ("attention+mlp", "linear+conv"):
        name = save(random_adapter(model, preset=preset, size=0.5), model, "diffusers", preset)
        assert_read(family, model, loras, name, caplog)


@pytest.mark.parametrize("family", NAMELESS)
def test_layers_without_a_name_are_refused(models, loras: Path, random_adapter, family: str) -> None:
    model = models(family).model
    adapter = random_adapter(model, preset="linear+conv")
    with pytest.raises(ValueError, match=f"no diffusers name for {NAMELESS[family]} layers, .*; save in the"):
        save(adapter, model, "diffusers")
    assert not list(loras.iterdir())
    nameless = names_of(model).unnamed("peft", list(adapter.layers))
    rest = {name: layer for name, layer in adapter.layers.items() if name not in nameless}
    name = save(Adapter(rest), model, "diffusers")
    twin = twin_of(family, model)
    twin.load_lora(loras / name)
    assert relative_error(twin.of_comfy(core(model, (name, 1.0, 0.0))), twin()) < SAME, "and all others are right"


@pytest.mark.verifies("In diffusers", "{style}{which}")
@pytest.mark.parametrize(
    ("family", "style", "which"), [(family, style, CLAIMS[which]) for family, style, which in OTHER_FORMATS]
)
def test_diffusers_reads_our_other_formats(
    models, loras: Path, random_adapter, caplog, family: str, style: str, which: str
) -> None:
    model = models(family).model
    for preset in ("attention+mlp",) if which else ("attention+mlp", "linear+conv"):
        name, report = save_told(random_adapter(model, preset=preset, size=0.5), model, style, preset)
        assert_read(family, model, loras, name, caplog)
        assert "for diffusers" not in report


@pytest.mark.parametrize(
    ("family", "style", "lost", "cure"),
    [
        ("flux2", "kohya", "leaves out 4 of its 29 layers", "such as diffusion_model.time_in"),
        ("zimage", "kohya", "leaves out 3 of its 29 layers", "save in the diffusers format"),
        ("wan21", "kohya", "cannot load this file because of 7 of its 27 layers", "such as diffusion_model.patch_emb"),
        ("wan21", "comfyui", "cannot load this file because of 7 of its 27 layers", "such as diffusion_model.patch"),
    ],
)  # fmt: skip
def test_what_diffusers_leaves_out_is_said(
    models, loras: Path, random_adapter, family: str, style: str, lost: str, cure: str
) -> None:
    """One sentence, true: diffusers refuses the file, or gives something else, and does without what is named."""
    model = models(family).model
    adapter = random_adapter(model, preset="linear+conv", size=0.5)
    name, report = save_told(adapter, model, style)
    (line,) = (line for line in report.splitlines() if "for diffusers" in line)
    assert line.startswith(f"diffusers {lost}") and cure in line
    twin = twin_of(family, model)
    if "cannot load" in lost:
        with pytest.raises((ValueError, IndexError)):
            twin.load_lora(loras / name)
    else:
        twin.load_lora(loras / name)
        assert relative_error(twin.of_comfy(core(model, (name, 1.0, 0.0))), twin()) > 0.02


# -- ranks of all kinds, in every release ------------------------------------------------------------------------------


def mixed(adapter: Adapter) -> Adapter:
    """With ranks 1, 4 and 2 in turn, each at a scaling of its own."""
    cuts = [layer.truncate(rank=(1, 4, 2)[i % 3]) for i, layer in enumerate(adapter.layers.values())]
    return Adapter({name: replace(cut, alpha=0.7 * cut.alpha) for name, cut in zip(adapter.layers, cuts, strict=True)})


def test_mixed_ranks_are_right_in_every_release_of_diffusers(models, loras: Path, random_adapter, tmp_path) -> None:
    """Today's gives what ComfyUI gives, and the older ones add the same to every weight, where they know the family."""
    wanted, jobs = {}, []
    for family in ONE_OF_EACH:
        model = models(family).model
        name, report = save_told(
            mixed(random_adapter(model, preset="attention+mlp", size=0.5)), model, "diffusers", family
        )
        assert "needs the same rank in all layers: " in report
        twin = twin_of(family, model)
        twin.load_lora(loras / name)
        assert relative_error(twin.of_comfy(applied(family, model, name)), twin()) < SAME, family
        wanted[family] = older.added(twin.network)
        jobs.append(twin.job(loras / name, tmp_path / family))
    for version in older.VERSIONS:
        older.run(version, jobs, tmp_path)
        known = {family: load_file(tmp_path / family) for family in ONE_OF_EACH if (tmp_path / family).exists()}
        assert {"sd15_full", "sdxl", "sd35_medium", "flux1", "chroma", "qwen_image", "wan21"} <= known.keys()
        for family, found in known.items():
            assert found.keys() == wanted[family].keys(), (version, family)
            worst = max(relative_error(found[name], delta) for name, delta in wanted[family].items())
            assert worst < SAME, (version, family)
            (tmp_path / family).unlink()


@pytest.mark.parametrize(("family", "style"), [("wan21", "comfyui"), ("flux2", "kohya")])
def test_mixed_ranks_in_other_formats_are_said(models, loras: Path, random_adapter, family: str, style: str) -> None:
    model = models(family).model
    report = save_told(mixed(random_adapter(model, preset="attention+mlp")), model, style)[1]
    assert "diffusers before August 2026 applies the layers of this file at wrong strengths" in report


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_text_layers_of_several_ranks(models, loras: Path, random_adapter, add_text, style: str) -> None:
    """diffusers, ComfyUI's loader (which Save LoRA asks) and readers as sd-scripts' see the same."""
    trio = models("sd15")
    text = {name: layer for name, layer in add_text(Adapter({}), trio.clip).layers.items()}
    adapter = mixed(Adapter(text))
    name, report = run_node(
        SaveLora, adapter=adapter, model=trio.model, clip=trio.clip, name=style, format=style, dtype="fp32"
    )
    assert "MB are zeros" in report
    config = {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder, reader = CLIPTextModel(CLIPTextConfig(**config)), loaders.StableDiffusionLoraLoaderMixin
    state, alphas, metadata = reader.lora_state_dict(str(loras / name), return_lora_metadata=True)
    reader.load_lora_into_text_encoder(state, alphas, encoder, prefix="text_encoder", metadata=metadata)
    found = older.added(encoder)
    assert len(found) == len(adapter.layers)
    for layer, delta in found.items():
        (wanted,) = (held for name, held in adapter.layers.items() if name.endswith(layer))
        assert relative_error(delta, wanted.delta_weight()) < SAME, layer
    if style == "kohya":
        held = load_file(loras / name)
        for key in (key for key in held if key.endswith(".alpha")):
            down, up = (held[key.replace(".alpha", f".lora_{part}.weight")] for part in ("down", "up"))
            (wanted,) = (
                each for name, each in adapter.layers.items() if flat(name).endswith(key[len("lora_te_") : -6])
            )
            assert relative_error(up @ down * held[key] / len(down), wanted.delta_weight()) < SAME


def flat(name: str) -> str:
    return name.replace(".", "_")


def applied(family: str, model: Any, name: str, style: str = "diffusers") -> Any:
    """MODEL with a file, by ComfyUI's own node where that reads such a file of this family."""
    alone = style == "diffusers" and family in tiny.DIFFUSERS_ALONE
    return (stacked if alone else core)(model, (name, 1.0, 0.0))


def assert_read(family: str, model: Any, loras: Path, name: str, caplog) -> None:
    twin = twin_of(family, model)
    plain = twin()
    twin.load_lora(loras / name)
    assert "unexpected keys" not in caplog.text
    assert relative_error(twin(), plain) > 0.02, "the LoRA must be seen"
    assert relative_error(twin.of_comfy(applied(family, model, name)), twin()) < SAME
    assert relative_error(twin.of_comfy(stacked(model, (name, 1.0, 0.0))), twin()) < SAME


# -- written by diffusers ----------------------------------------------------------------------------------------------


def write_peft(twin: Twin, loras: Path) -> str:
    """Write what diffusers saves of an adapter of all linear layers: its own spelling, q, k and v with factors of their
    own, alpha in the header, and the same rank in a weight that cannot have it. ComfyUI's loader ignores that alpha,
    and knows no such name in a UNet, Wan, Lumina 2 or Anima."""
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
        assert relative_error(twin.of_comfy(applied(family, model, name, style)), twin()) < SAME, style
