"""Files under any names that a peer writes: read whole, equal to what the peer reads, and never by another family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from harness.calls import encode, loaded, relative_error, run_node
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.bridge.model.names import NameTable
from lora_loom.nodes.bridge.training.continue_from import read_start
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.resize_lora import ResizeLora
from peft import LoraConfig as PeftConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny.text_twin import Text
from tiny.twin import TWINS
from torch import Tensor, nn

SAME = 1e-5
Shapes = Mapping[str, tuple[int, ...]]
DOTTED = (
    "base_model.model.", "base_model.model.diffusion_model.", "module.", "unet._orig_mod.", "model.diffusion_model.",
    "transformer.", "",
)  # fmt: skip
FLAT = ("lora_unet_", "lora_unet__", "lycoris_")


@pytest.fixture(scope="module")
def tables(models) -> dict[str, NameTable]:
    """The names of every tiny model."""
    return {name: NameTable(models(name).model) for name in tiny.FAMILIES}


def own_names(table: NameTable) -> Shapes:
    inside = "diffusion_model."
    shapes = {
        name.removeprefix(inside): tuple(shape) for name, shape in table.shapes.items() if name.startswith(inside)
    }
    return {name: shape for name, shape in shapes.items() if len(shape) == 2}


def names_in_diffusers(family: str, model: Any) -> Shapes:
    network = TWINS[family](model).network
    return {name: m.weight.shape for name, m in network.named_modules() if isinstance(m, nn.Linear)}


def spelled(names: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    flat = prefix in FLAT
    return {prefix + (name.replace(".", "_") if flat else name): tuple(shape) for name, shape in names.items()}


def adapter_of(shapes: Shapes) -> Adapter:
    layers = {}
    for number, (name, (rows, columns)) in enumerate(shapes.items()):
        layers[name] = LowRank(torch.full((1, columns), 0.01 * (number + 1)), torch.ones(rows, 1), 1.0)
    return Adapter(layers)


def tensors_of(shapes: Shapes, down: str = "lora_A.weight", up: str = "lora_B.weight") -> dict[str, Tensor]:
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, (rows, columns) in shapes.items():
        tensors[f"{name}.{down}"] = torch.randn(4, columns, generator=generator) * 0.1
        tensors[f"{name}.{up}"] = torch.randn(rows, 4, generator=generator) * 0.1
    return tensors


def stacked(trio: tiny.Loaded, *names: str, clip: bool = False) -> tuple[Any, Any, str]:
    """MODEL, CLIP and report of Load LoRA Stack."""
    off = {"lora_1": "None", "strength_1": 1.0, "text_strength_1": 1.0}
    rows = [(name, 1.0, 1.0) for name in names]
    made = run_node(LoadLoraStack, model=trio.model, clip=trio.clip if clip else None, lora_stack=rows, **off)
    return made[0], made[1], made[3]


# -- every family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_own_and_diffusers_names_under_every_prefix(tables, models, family: str) -> None:
    """The same corrections as under the names that are known, and no other tiny model takes a layer of it."""
    table, own = tables[family], tables[family].family.name
    bodies = [own_names(table)] + ([names_in_diffusers(family, models(family).model)] if family in TWINS else [])
    usual = table.resolve(adapter_of(spelled(bodies[0], "diffusion_model.")), "a").adapter.layers
    for body in bodies:
        whole: dict[str, LowRank] = {}
        for prefix in (*DOTTED, *FLAT):
            found = table.resolve(adapter_of(spelled(body, prefix)), "a")
            assert not found.unmatched and not found.misfits, (prefix, found.unmatched[:2], found.misfits[:2])
            whole = whole or dict(found.adapter.layers)
            assert found.adapter.layers.keys() == whole.keys()
            assert all(torch.equal(found.adapter.layers[n].lora_B, whole[n].lora_B) for n in whole)
            assert all(torch.equal(found.adapter.layers[n].lora_A, whole[n].lora_A) for n in whole)
        assert body is not bodies[0] or all(torch.equal(usual[n].lora_A, whole[n].lora_A) for n in usual)
    file = adapter_of(spelled(bodies[0], "base_model.model."))
    for other in tables.values():
        if other.family.name != own and not any({own, other.family.name} <= alike for alike in tiny.ALIKE):
            with pytest.raises(ValueError, match=r"(is a LoRA|was made) for|none of its \d+ layer names is known"):
                other.resolve(file, "a")


@pytest.mark.parametrize("family", ["flux1", "sd15", "wan21", "zimage"])
def test_names_that_no_prefix_explains_are_given_beside_known_ones(tables, family: str) -> None:
    table = tables[family]
    with pytest.raises(ValueError) as refused:
        table.resolve(adapter_of({f"odd.{number}.thing": (8, 8) for number in range(9)}), "a.safetensors")
    said, name = str(refused.value), table.family.name
    assert said.startswith(f"a.safetensors: none of its 9 layer names is known for this {name} model.")
    assert "'odd.0.thing', 'odd.1.thing'" in said and "'diffusion_model." in said and "'lora_unet_" in said
    assert not re.search(r"is a LoRA for|Load LoRA node", said)


# -- what a peer reads -------------------------------------------------------------------------------------------------


def musubi(names: Shapes) -> dict[str, Tensor]:
    made = tensors_of(spelled(names, "lora_unet_"), "lora_down.weight", "lora_up.weight")
    return made | {f"{name}.alpha": torch.tensor(2.0) for name in spelled(names, "lora_unet_")}


def blocks(names: Shapes, pattern: str = "blocks") -> Shapes:
    return {name: shape for name, shape in names.items() if re.search(pattern, name)}


READ_BY_DIFFUSERS = {
    ("flux2", "peft, own names"): lambda own, twin: tensors_of(spelled(blocks(own), "base_model.model.")),
    ("flux2", "diffusers' names"): lambda own, twin: tensors_of(spelled(blocks(twin), "diffusion_model.")),
    ("krea2", "peft, own names"): lambda own, twin: tensors_of(
        spelled(blocks(own, r"^blocks.*(attn|mlp)"), "base_model.model.")
    ),
    ("krea2", "peft, with the network's prefix"): lambda own, twin: tensors_of(
        spelled(blocks(own, r"^blocks.*(attn|mlp)"), "base_model.model.diffusion_model.")
    ),
    ("zimage", "musubi"): lambda own, twin: musubi(blocks(twin, r"^layers.*(attention|feed_forward)")),
}


@pytest.mark.parametrize(("family", "kind"), READ_BY_DIFFUSERS)
def test_a_file_that_diffusers_reads_gives_the_same_output(models, loras: Path, family: str, kind: str) -> None:
    trio = models(family)
    twin, own = TWINS[family](trio.model), own_names(NameTable(trio.model))
    save_file(READ_BY_DIFFUSERS[family, kind](own, names_in_diffusers(family, trio.model)), loras / "a.safetensors")
    plain = twin()
    twin.load_lora(loras / "a.safetensors")
    model, _, report = stacked(trio, "a.safetensors")
    assert "not applied" not in report and relative_error(twin(), plain) > 1e-3, "the LoRA must be seen"
    assert relative_error(twin.of_comfy(model), twin()) < SAME


def test_xlabs_loras_of_any_number_of_blocks(models, loras: Path) -> None:
    """Equal to diffusers, which reads them with two blocks or all."""
    trio, shapes = models("flux1"), {}
    for block in range(2):
        for part, rows in (("qkv_lora1", 384), ("qkv_lora2", 384), ("proj_lora1", 128), ("proj_lora2", 128)):
            shapes[f"double_blocks.{block}.processor.{part}"] = (rows, 128)
        shapes[f"single_blocks.{block}.processor.qkv_lora"] = (384, 128)
        shapes[f"single_blocks.{block}.processor.proj_lora"] = (128, 640)
    save_file(tensors_of(shapes, "down.weight", "up.weight"), loras / "a.safetensors")
    twin = TWINS["flux1"](trio.model)
    twin.load_lora(loras / "a.safetensors")
    model, _, report = stacked(trio, "a.safetensors")
    assert "a: 12 layers" in report and "not applied" not in report
    assert relative_error(twin.of_comfy(model), twin()) < SAME < relative_error(twin.of_comfy(trio.model), twin())


def test_onetrainer_splits_fused_weights(models, loras: Path) -> None:
    """Slices by number are those that diffusers names."""
    table, found = NameTable(models("flux1").model), []
    parts = [("attn.to_q", 128), ("attn.to_k", 128), ("attn.to_v", 128), ("proj_mlp", 512)]
    own = {f"transformer.single_blocks.0.linear1.{n}": (rows, 128) for n, (_, rows) in enumerate(parts)}
    theirs = {f"transformer.single_transformer_blocks.0.{name}": (rows, 128) for name, rows in parts}
    for names in (own, theirs):
        resolved = table.resolve(adapter_of(names), "a")
        assert not resolved.unmatched and list(resolved.adapter.layers) == ["diffusion_model.single_blocks.0.linear1"]
        found.append(resolved.adapter.layers["diffusion_model.single_blocks.0.linear1"].delta_weight())
    assert torch.equal(*found) and float(found[0].norm()) > 0
    double = {f"transformer.double_blocks.1.txt_attn.qkv.{n}": (128, 128) for n in range(3)}
    assert not table.resolve(adapter_of(double), "a").unmatched


@pytest.mark.parametrize("family", tiny.DIFFUSERS_ALONE)
def test_attention_processors_of_before_peft(models, loras: Path, family: str) -> None:
    """What diffusers' scripts for Kandinsky 2.2 have saved; equal to the same corrections under today's names."""
    trio, found = models(family), []
    names = {name: tuple(shape) for name, shape in names_in_diffusers(family, trio.model).items()}
    own = {name: shape for name, shape in names.items() if re.search(r"\.(to_[qkv]|to_out\.0|add_[kv]_proj)$", name)}
    old = {re.sub(r"\.(\w+)(\.0)?$", r".processor.\1_lora", name): shape for name, shape in own.items()}
    assert len(own) > 7
    save_file(tensors_of(own), loras / "today.safetensors")
    save_file(tensors_of(old, "down.weight", "up.weight"), loras / "before.safetensors")
    for file in ("today.safetensors", "before.safetensors"):
        model, _, report = stacked(trio, file)
        assert f": {len(own)} layers" in report and "not applied" not in report
        found.append(loaded(model))
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert any(not torch.equal(value, found[0][key]) for key, value in loaded(trio.model).items())


@pytest.mark.parametrize("part", ["unet", "prior"])
def test_onetrainer_names_of_wuerstchen(tables, part: str) -> None:
    """The network was `prior` to its first releases. A file of theirs is not one for Stable Cascade."""
    table = tables["wuerstchen2"]
    file = adapter_of(
        {f"lora_prior_{part}_" + name.replace(".", "_"): shape for name, shape in own_names(table).items()}
    )
    found = table.resolve(file, "a")
    assert not found.unmatched and len(found.adapter.layers) == len(own_names(table))
    for cascade in ("cascade_c", "cascade_b"):
        with pytest.raises(ValueError, match="Wuerstchen v2 prior.*Stable Cascade|Stable Cascade.*Wuerstchen v2 prior"):
            tables[cascade].resolve(file, "a")


@pytest.mark.parametrize("columns", [False, True])
def test_lokr_of_anima_with_flat_scales(models, loras: Path, columns: bool) -> None:
    """A LoKr of whole matrices, DoRA's scale a list beside those of cross-attention; against the definition."""
    trio = models("anima")
    table, tensors = NameTable(trio.model), {}
    names = [
        f"diffusion_model.blocks.0.{part}" for part in ("cross_attn.k_proj", "cross_attn.q_proj", "self_attn.k_proj")
    ]
    generator = torch.Generator().manual_seed(0)
    for name in names:
        rows, width = table.shapes[name]
        tensors[f"{name}.lokr_w1"] = torch.randn(rows // 8, 8, generator=generator) * 0.1
        tensors[f"{name}.lokr_w2"] = torch.randn(8, width // 8, generator=generator) * 0.1
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
        if "cross" in name:
            tensors[f"{name}.dora_scale"] = torch.rand(width if columns else rows, generator=generator) + 0.5
    save_file(tensors, loras / "a.safetensors")
    model, _, report = stacked(trio, "a.safetensors")
    assert "a: 3 layers (2 DoRA, 1 LoKr)" in report and "not applied" not in report
    before, after = loaded(trio.model), loaded(model)
    for name in names:
        wanted = before[f"{name}.weight"] + torch.kron(tensors[f"{name}.lokr_w1"], tensors[f"{name}.lokr_w2"])
        if (scale := tensors.get(f"{name}.dora_scale")) is not None:
            axis = int(columns or wanted.shape[0] == wanted.shape[1])
            wanted *= (scale / wanted.norm(dim=1 - axis)).unsqueeze(1 - axis)
        assert relative_error(after[f"{name}.weight"], wanted) < 1e-6


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_network", [False, True])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_text_encoders_as_diffusers_writes_them(models, loras: Path, family: str, with_network: bool) -> None:
    """Whatever level of names its transformers has; alone and beside the network."""
    trio = models(family)
    twin, layers = Text(trio.clip), {}
    torch.manual_seed(0)
    for part, network in zip(("text_encoder", "text_encoder_2"), twin.networks.values(), strict=False):
        wanted = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        network.add_adapter(PeftConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=wanted))
        layers |= {f"{part}.{name}": value for name, value in get_peft_model_state_dict(network).items()}
    if with_network:
        table = NameTable(trio.model)
        names = [name for name in table.targets if name.startswith("unet.") and name.endswith("attn1.to_q")]
        layers |= tensors_of({name: tuple(table.shapes[table.targets[name].layer]) for name in names})
    StableDiffusionLoraLoaderMixin.write_lora_layers(layers, str(loras), True, "a.safetensors", None, True)
    text, pooled = twin("a red heart")
    model, clip, report = stacked(trio, "a.safetensors", clip=True)
    ours, plain = encode(clip, "a red heart")[0], encode(trio.clip, "a red heart")[0]
    assert "not applied" not in report and bool(model.patches) == with_network
    assert relative_error(ours[0], text) < SAME < 0.01 < relative_error(plain[0], text)
    if family == "sdxl":
        assert relative_error(ours[1]["pooled_output"], pooled) < SAME


SPELLINGS = (
    "text_encoder.{inside}", "text_encoder.text_model.{inside}", "te1.text_model.{inside}", "lora_te1_{flat}",
    "base_model.model.{inside}", "{encoder}.transformer.{path}", "text_encoders.{encoder}.transformer.{path}",
)  # fmt: skip


@pytest.mark.parametrize("kind", tiny.text.KINDS)
def test_every_text_encoder_goes_by_every_spelling(models, kind: str) -> None:
    """The first encoder of every family, T5 and language models included, and the last by its number."""
    family = next(row.name for row in tiny.FAMILIES.values() if row.text == kind)
    trio = models(family)
    table = NameTable(trio.model, trio.clip)
    inner = [name for name, shape in table.shapes.items() if len(shape) == 2 and re.search(r"(layers|block)\.\d", name)]
    text = [name.removeprefix(TEXT_PREFIX) for name in inner if name.startswith(TEXT_PREFIX)]
    encoders = list(dict.fromkeys(name.partition(".")[0] for name in text))
    for number, encoder in ((1, encoders[0]), (len(encoders), encoders[-1])):
        names = [name for name in text if name.startswith(f"{encoder}.transformer.") and "visual" not in name]
        paths = [name.removeprefix(f"{encoder}.transformer.") for name in names]
        for spelling in SPELLINGS:
            if number > 1:
                spelling = spelling.replace("te1", f"te{number}").replace("text_encoder.", f"text_encoder_{number}.")
            if spelling.startswith("base_model") and len(encoders) > 1:
                continue  # which of them is not said
            inside = [path.removeprefix("text_model.").removeprefix("model.") for path in paths]
            spelled_names = [
                spelling.format(encoder=encoder, path=path, inside=each, flat=each.replace(".", "_"))
                for path, each in zip(paths, inside, strict=True)
            ]
            shapes = [tuple(table.shapes[TEXT_PREFIX + name]) for name in names]
            found = table.resolve(adapter_of(dict(zip(spelled_names, shapes, strict=True))), "a")
            assert not found.unmatched and not found.misfits, (spelling, found.unmatched[:2])
            assert set(found.adapter.layers) == {TEXT_PREFIX + name for name in names}, spelling


def test_a_text_encoder_s_file_is_for_no_family(models) -> None:
    """And asks for CLIP, or for the CLIP that has its layers."""
    trio = models("sd15")
    clip = {"text_encoder.encoder.layers.0.self_attn.k_proj": (768, 768)}
    with pytest.raises(ValueError, match="a changes only the text encoder; connect CLIP"):
        NameTable(trio.model).resolve(adapter_of(clip), "a")
    second = {"text_encoder_2.encoder.layers.0.self_attn.k_proj": (1280, 1280)}
    with pytest.raises(ValueError, match="changes only text encoders, and the connected CLIP has none of its 1 layers"):
        NameTable(trio.model, trio.clip).resolve(adapter_of(second), "a")


# -- layers of another shape -------------------------------------------------------------------------------------------

SD_LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
FLUX_LAYER = "transformer.transformer_blocks.0.attn.to_q"
MISFITS = {  # family, a layer that fits with its width, one that does not with its shape, and what is said of it
    "Fill on FLUX.1, diffusers": ("flux1", FLUX_LAYER, 128, "transformer.x_embedder", (128, 384), "128 x 64"),
    "Fill on FLUX.1, peft": (
        "flux1", "base_model.model.double_blocks.0.img_attn.proj", 128, "base_model.model.img_in", (128, 384),
        "128 x 64",
    ),
    "image to video on Wan": (
        "wan21", "diffusion_model.blocks.0.self_attn.q", 128, "diffusion_model.patch_embedding", (128, 36, 1, 2, 2),
        "128 x 16 x 1 x 2 x 2",
    ),
    "inpainting on SD 1.5": ("sd15", SD_LAYER, 320, "lora_unet_conv_in", (320, 9, 3, 3), "320 x 4 x 3 x 3"),
    "another output on Z-Image": (
        "zimage", "diffusion_model.layers.0.attention.out", 384, "diffusion_model.final_layer.linear", (128, 384),
        "64 x 384",
    ),
}  # fmt: skip


def write_misfit(path: Path, layer: str, width: int, odd: str, shape: tuple[int, ...]) -> Tensor:
    """A file of two layers, the second of `shape`; returns the change of the first."""
    tensors = tensors_of({layer: (width, width)}, "lora_down.weight", "lora_up.weight")
    change = tensors[f"{layer}.lora_up.weight"] @ tensors[f"{layer}.lora_down.weight"]
    tensors[f"{odd}.lora_down.weight"] = torch.ones(4, *shape[1:])
    tensors[f"{odd}.lora_up.weight"] = torch.ones(shape[0], 4, *[1] * (len(shape) - 2))
    save_file(tensors, path)
    return change


@pytest.mark.parametrize("case", MISFITS)
def test_a_layer_of_another_shape_is_left_out_and_named(models, loras: Path, case: str) -> None:
    """In Stack, Merge, Convert, Resize and continue_from; what fits is what it was."""
    family, *layers, wanted = MISFITS[case]
    trio, odd, held = models(family), layers[2], " x ".join(map(str, layers[3]))
    change = write_misfit(loras / "a.safetensors", *layers)
    model, _, report = stacked(trio, "a.safetensors")
    (patched,) = model.patches
    reports = {"stack": report}
    made = {}
    made["merge"], reports["merge"] = run_node(
        MergeLora, model=trio.model, lora_stack=[("a.safetensors", 1.0, 1.0)], adapters={}, strengths="", rank=0
    )[0:3:2]
    made["convert"], reports["convert"] = run_node(
        ConvertLora, model=trio.model, lora="a.safetensors", rank=4, energy=1.0
    )[0:3:2]
    sizes = {"rank": 0, "energy": 1.0, "size_mb": 0.0, "strength": 1.0, "text_strength": 1.0}
    resized = run_node(ResizeLora, model=trio.model, lora_name="a.safetensors", **sizes)
    made["resize"], reports["resize"] = resized[0], resized[3]
    start = read_start("a.safetensors", trio.model, trio.clip, True, 0, 0.0)
    reports["continue_from"] = start.note(list(start.layers))
    for name, said in reports.items():
        assert f"1 not applied (wrong shape: {odd} is {held}, but" in said, (name, said)
        assert f" {wanted})" in said, (name, said)
    for adapter in (*made.values(), Adapter(start.layers)):
        ((layer, found),) = adapter.layers.items()
        height = found.lora_B.shape[0]
        assert f"{layer}.weight" == patched and relative_error(found.delta_weight()[: len(change)], change) < 1e-5
        assert height == len(change) or float(found.delta_weight()[len(change) :].norm()) == 0


def test_so_many_of_another_shape_are_another_size(models, tables, loras: Path) -> None:
    own = own_names(tables["wan21"])
    twice = {f"diffusion_model.{name}": tuple(2 * side for side in shape) for name, shape in blocks(own).items()}
    with pytest.raises(ValueError) as refused:
        tables["wan21"].resolve(adapter_of(twice), "a")
    assert re.search(r"another size of Wan 2.1: (\d+) of its \1 layers do not .*\(256, 256\), but .* is \(128, 128\)",
                     str(refused.value))  # fmt: skip
    only = {"diffusion_model.patch_embedding": (128, 36)}
    with pytest.raises(ValueError, match="1 of its 1 layers do not fit"):
        tables["wan21"].resolve(adapter_of(only), "a")
