"""Load LoRA Stack: the exact sum of its rows, one patch per weight, put on and taken off by ComfyUI without a trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import pytest
import tiny
import torch
from harness.calls import encode, loaded, relative_error, run_node, sampled
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.nodes.bridge.merging.save import DTYPES, STYLES, save_proven
from lora_loom.nodes.bridge.model.names import NameTable, family_of
from lora_loom.nodes.bridge.stack.quick_patchers import FusedLoRA
from lora_loom.nodes.load_stack import LoadLoraStack
from safetensors.torch import load_file, save_file
from torch import Tensor

import nodes

Row = tuple[str, float, float]
FAMILIES = ["sd15", "flux1", "wan_demo"]


def stack(model: Any, rows: Sequence[Row], clip: Any = None, before: Any = None) -> tuple[Any, Any, list, str]:
    """Outputs of the node: model, clip, stack, report."""
    filled = {}
    for number, (name, strength, text) in enumerate(rows, 1):
        filled |= {f"lora_{number}": name, f"strength_{number}": strength, f"text_strength_{number}": text}
    first = {"lora_1": "None", "strength_1": 1.0, "text_strength_1": 1.0}
    return run_node(LoadLoraStack, model=model, clip=clip, lora_stack=before, **{**first, **filled})[:4]


def chained(model: Any, clip: Any, rows: Sequence[Row]) -> tuple[Any, Any]:
    """The same with ComfyUI's own loader, one node per row."""
    for name, strength, text in rows:
        model, clip = nodes.LoraLoader().load_lora(model, clip, name, strength, text)
    return model, clip


@pytest.fixture
def mixed(models, loras: Path, random_adapter) -> Callable[[str], list[tuple[Row, Adapter]]]:
    """Files for a family in different formats, ranks, alphas, dtypes and strengths, each with what it holds."""

    def make(family: str) -> list[tuple[Row, Adapter]]:
        model = models(family).model
        third = "comfyui" if family in tiny.NOT_BY_COMFYUI else "diffusers"
        kinds = [("comfyui", "fp32", 4, 3.0, 0.8), ("kohya", "fp16", 8, 1.0, -0.6), (third, "fp32", 3, 7.0, 1.7)]
        made = []
        for seed, (style, dtype, rank, alpha, strength) in enumerate(kinds):
            preset = "attention" if seed else "attention+mlp"
            adapter = random_adapter(model, rank, alpha, seed, preset, size=0.2)
            save_proven(adapter, loras / f"{seed}.safetensors", STYLES[style], DTYPES[dtype], model)
            held = adapter.map(lambda layer, dtype=DTYPES[dtype]: layer.to(dtype).to(torch.float32))
            made.append(((f"{seed}.safetensors", strength, 0.0), held))
        if family == "flux1":
            made.append((("sliced.safetensors", 1.1, 0.0), write_sliced(loras / "sliced.safetensors")))
        return made

    return make


def write_sliced(path: Path) -> Adapter:
    """q and v of fused FLUX.1 weights with their own factors, as PEFT trains them; and the same as one layer each."""
    generator = torch.Generator().manual_seed(9)
    tensors, layers = {}, {}
    for theirs, ours, height in (
        ("transformer_blocks.1", "double_blocks.1.img_attn.qkv", 384),
        ("single_transformer_blocks.0", "single_blocks.0.linear1", 896),
    ):
        parts = []
        for name, start in (("to_q", 0), ("to_v", 256)):
            down, up = torch.randn(2, 128, generator=generator) * 0.1, torch.randn(128, 2, generator=generator) * 0.1
            tensors |= {f"transformer.{theirs}.attn.{name}.lora_A.weight": down}
            tensors |= {f"transformer.{theirs}.attn.{name}.lora_B.weight": up}
            parts.append(LowRank(down, up, 2.0).in_rows(start, height))
        layers[f"diffusion_model.{ours}"] = LowRank.concat(parts)
    save_file(tensors, path)
    return Adapter(layers)


def dense_sum(made: Sequence[tuple[Row, Adapter]]) -> dict[str, Tensor]:
    """Weight key to the sum of strength * delta_W, in fp64."""
    total: dict[str, Tensor] = {}
    for (_, strength, _), adapter in made:
        for layer, low_rank in adapter.layers.items():
            delta = strength * low_rank.to(torch.float64).delta_weight()
            total[f"{layer}.weight"] = total.get(f"{layer}.weight", 0) + delta
    return total


# -- the sum -----------------------------------------------------------------------------------------------------------


@pytest.mark.verifies("Stack", "")
@pytest.mark.parametrize("family", [*FAMILIES, "flux1_schnell", *tiny.MORE])
def test_exact_sum_and_the_core_chain(models, mixed, family: str, record_property) -> None:
    trio, made = models(family), mixed(family)
    rows = [row for row, _ in made]
    ours, _, _, report = stack(trio.model, rows)
    theirs, _ = chained(trio.model, None, rows)
    assert "not applied" not in report and report.count(" layers at ") == len(rows)
    before, by_us, by_core, wanted = loaded(trio.model), loaded(ours), loaded(theirs), dense_sum(made)
    for key, weight in before.items():
        if key not in wanted:
            assert torch.equal(by_us[key], weight), key
            continue
        total = weight.double() + wanted[key]
        record_property("error", relative_error(by_us[key], total))
        assert relative_error(by_us[key], total) < 5e-7 and relative_error(by_core[key], total) < 5e-7, key
        assert relative_error(by_us[key], by_core[key]) < 1e-6, key
    text = encode(trio.clip, "a red heart")
    latent = torch.zeros(tiny.latent_shape(trio.model))
    assert relative_error(sampled(ours, text, latent), sampled(theirs, text, latent)) < 1e-5
    assert relative_error(sampled(ours, text, latent), sampled(trio.model, text, latent)) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_one_patch_per_weight_in_one_call(models, mixed, monkeypatch, family: str) -> None:
    trio, made = models(family), mixed(family)
    below, _ = chained(trio.model, None, [made[0][0]])  # a LoRA that is already on the model
    calls, add = [], comfy.model_patcher.ModelPatcher.add_patches

    def counted(self: Any, patches: dict, *args: Any) -> Any:
        calls.append(len(patches))
        return add(self, patches, *args)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "add_patches", counted)
    uuid, patches = below.patches_uuid, {key: list(value) for key, value in below.patches.items()}
    above, *_ = stack(below, [row for row, _ in made])
    layers = set().union(*(adapter.layers for _, adapter in made))
    assert calls == [len(layers)]
    for layer in layers:
        assert len(above.patches[f"{layer}.weight"]) == len(patches.get(f"{layer}.weight", [])) + 1
    assert below.patches_uuid == uuid and below.patches == patches, "the input MODEL is untouched"


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_off_without_a_trace(models, mixed, family: str) -> None:
    model, rows = models(family).model, [row for row, _ in mixed(family)]
    before = loaded(model)
    changed = loaded(stack(model, rows)[0])
    after = loaded(model)
    assert any(not torch.equal(changed[key], before[key]) for key in before)
    assert all(torch.equal(after[key], before[key]) for key in before)


# -- little memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_low_vram(models, mixed, family: str) -> None:
    """ComfyUI leaves weights where they are and patches a copy in every forward."""
    trio, rows = models(family), [row for row, _ in mixed(family)]
    text = encode(trio.clip, "a red heart")
    latent = torch.zeros(tiny.latent_shape(trio.model))
    patched = stack(trio.model, rows)[0]
    wanted, before = sampled(patched, text, latent), loaded(trio.model)
    comfy.model_management.unload_all_models()
    network = patched.model
    with torch.inference_mode():
        patched.load(patched.load_device, lowvram_model_memory=1)
        assert network.model_lowvram and network.lowvram_patch_counter >= len(patched.patches)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        found = forward(network, latent, text)
        patched.unpatch_model(patched.offload_device)
        whole = forward_of(patched, latent, text)
    assert relative_error(found, whole) < 1e-5
    assert relative_error(sampled(patched, text, latent), wanted) == 0.0


def forward(network: Any, latent: Tensor, text: list) -> Tensor:
    (context, options), *_ = text
    device = comfy.model_management.get_torch_device()
    y = options.get("pooled_output") if "Flux" in type(network).__name__ else None
    sigma = network.model_sampling.sigma_max.reshape(1).to(device) * 0.5
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(device)
    more = {} if y is None else {"y": y.to(device), "guidance": torch.tensor([3.5], device=device)}
    return network.apply_model(noise, sigma, c_crossattn=context.to(device), **more).cpu()


def forward_of(model: Any, latent: Tensor, text: list) -> Tensor:
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return forward(model.model, latent, text)


def test_prefetch_rebuilds_the_patch(models, mixed) -> None:
    """Streams rebuild a patch from `loaded_keys` and `weights` alone."""
    patched = stack(models("flux1").model, [row for row, _ in mixed("flux1")])[0]
    for key, ((strength, value, *rest),) in patched.patches.items():
        rebuilt = comfy.lora.prefetch_prepared_value(value, [0], None, None, False)
        assert type(rebuilt) is FusedLoRA and rebuilt is not value
        zero = torch.zeros(models("flux1").model.model.state_dict()[key].shape)
        one, two = (comfy.lora.calculate_weight([(strength, v, *rest)], zero.clone(), key) for v in (value, rebuilt))
        assert torch.equal(one, two) and one.norm() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 48, generator=generator).to(dtype)
    layers = [
        LowRank(torch.randn(8, 48, generator=generator), torch.randn(64, 8, generator=generator), 0.4) for _ in range(6)
    ]
    patch = FusedLoRA.of(layers)
    exact = weight.double() + sum(layer.to(torch.float64).delta_weight() for layer in layers)
    full = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.float(), "w").to(dtype)
    assert torch.equal(full, exact.to(dtype)) or relative_error(full, exact.to(dtype)) < 1e-4
    low = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), "w", intermediate_dtype=dtype)
    assert low.dtype == dtype and relative_error(low, exact) < 4 * torch.finfo(dtype).eps


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_that_are_off(models, loras: Path, make_lora) -> None:
    model = models("sd15").model
    make_lora("sd15", loras / "on.safetensors")
    patched, _, rows, report = stack(model, [("None", 1.0, 1.0), ("on.safetensors", 0.0, 0.0)])
    assert not patched.patches and report == "no LoRA is switched on"
    assert rows == [("on.safetensors", 0.0, 0.0)], "the row goes on through the stack, strength and all"
    (loras / "broken.safetensors").write_bytes(b"not read at strength 0")
    assert not stack(model, [("broken.safetensors", 0.0, 0.0)])[0].patches


def test_stacks_are_chained_in_order(models, loras: Path, make_lora) -> None:
    model = models("sd15").model
    for name in "abc":
        make_lora("sd15", loras / "sub" / f"{name}.safetensors", seed=ord(name))
    _, _, first, _ = stack(model, [(str(Path("sub") / "a.safetensors"), 0.5, 1.0)])
    foreign = [*first, ["sub\\b.safetensors", 0.25, 0.0, "another pack's extra"], ("None", 1.0, 1.0)]
    patched, _, rows, report = stack(model, [("c.safetensors", 2.0, 1.0)], before=foreign)
    assert [(Path(name.replace("\\", "/")).stem, strength) for name, strength, _ in rows] == [
        ("a", 0.5),
        ("b", 0.25),
        ("c", 2.0),
    ]
    assert [line.split(":")[0] for line in report.splitlines()[:3]] == ["a", "b", "c"]
    assert report.splitlines()[4:6] == [
        'lora_stack entry 2, sub\\b.safetensors: "another pack\'s extra" is ignored, because it is unknown here',
        "lora_stack entry 3 is ignored: it has no file name",
    ]
    alone = chained(
        model, None, [("sub/a.safetensors", 0.5, 0), ("sub/b.safetensors", 0.25, 0), ("sub/c.safetensors", 2.0, 0)]
    )[0]
    by_us, by_core = loaded(patched), loaded(alone)
    assert all(relative_error(by_us[key], by_core[key]) < 1e-6 for key in patched.patches)


def test_strange_stack_entry(models) -> None:
    with pytest.raises(ValueError, match="lora_stack entry 1 is .*expected"):
        stack(models("sd15").model, [], before=[("a.safetensors",)])


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_text_encoder_strength(models, loras: Path, random_adapter, add_text, family: str, style: str) -> None:
    trio = models(family)
    adapter = add_text(random_adapter(trio.model), trio.clip)
    _, proof = save_proven(adapter, loras / "text.safetensors", STYLES[style], torch.float32, trio.model, trio.clip)
    assert proof.layers == len(adapter.layers) and not proof.unmatched
    row = ("text.safetensors", 0.3, 0.9)
    model, clip, _, report = stack(trio.model, [row], trio.clip)
    core_model, core_clip = chained(trio.model, trio.clip, [row])
    count = len(adapter.layers)
    assert report == f"text: {count} layers at 0.3 / 0.9\n{count} weights changed"
    ours, theirs, plain = (encode(c, "a red heart")[0][0] for c in (clip, core_clip, trio.clip))
    assert relative_error(ours, theirs) < 1e-5
    pooled = [encode(c, "a red heart")[0][1]["pooled_output"] for c in (clip, core_clip, trio.clip)]
    assert relative_error(pooled[0], pooled[1]) < 1e-5 and relative_error(pooled[0], pooled[2]) > 1e-3
    assert (
        relative_error(loaded(model)[next(iter(model.patches))], loaded(core_model)[next(iter(model.patches))]) < 1e-6
    )
    assert torch.equal(encode(trio.clip, "a red heart")[0][0], plain), "the input CLIP is untouched"


def test_text_names_of_diffusers(models, loras: Path, random_adapter, add_text) -> None:
    trio = models("sd15")
    adapter = add_text(random_adapter(trio.model), trio.clip)
    save_proven(adapter, loras / "text.safetensors", "peft", torch.float32, trio.model, trio.clip)
    names = [name for name in load_file(loras / "text.safetensors") if name.startswith("text_encoder")]
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert all(name.startswith("text_encoder.text_model.encoder.layers.0.") for name in names)


def test_text_layers_without_clip(models, loras: Path, random_adapter, add_text) -> None:
    trio = models("sd15")
    both = add_text(random_adapter(trio.model), trio.clip)
    text = Adapter({name: layer for name, layer in both.layers.items() if name.startswith(TEXT_PREFIX)})
    for name, adapter in (("both", both), ("text", text)):
        save_proven(adapter, loras / f"{name}.safetensors", "kohya", torch.float32, trio.model, trio.clip)
    report = stack(trio.model, [("both.safetensors", 1.0, 1.0)])[3]
    assert f"{len(text.layers)} not applied (text encoder layers; connect CLIP)" in report
    with pytest.raises(ValueError, match="text.safetensors changes only the text encoder; connect CLIP"):
        stack(trio.model, [("text.safetensors", 1.0, 1.0)])


@pytest.fixture(scope="module")
def tables(models) -> dict[str, NameTable]:
    """The names of every tiny model."""
    return {name: NameTable(models(name).model) for name in tiny.FAMILIES}


# -- files that do not fit ---------------------------------------------------------------------------------------------


def test_unmatched_keys_are_reported(models, loras: Path, make_lora) -> None:
    make_lora("sd15", loras / "a.safetensors")
    tensors = load_file(loras / "a.safetensors")
    extra = {f"lora_unet_somewhere_else.lora_{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    save_file({**tensors, **extra}, loras / "a.safetensors")
    patched, _, _, report = stack(models("sd15").model, [("a.safetensors", 1.0, 1.0)])
    assert "1 not applied (not in this model, for example lora_unet_somewhere_else)" in report
    assert len(patched.patches) == 8


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_lora_of_another_family_is_refused_with_both_names(
    tables: dict[str, NameTable], models, loras: Path, make_lora, family: str
) -> None:
    """On every other tiny model. A file without a header may be for several families, its own among them."""
    make_lora(family, loras / "a.safetensors")
    adapter, own = formats.read(loras / "a.safetensors"), family_of(models(family).model).name
    for table in tables.values():
        other = table.family.name
        if other == own or any({own, other} <= alike for alike in tiny.ALIKE):
            continue
        with pytest.raises(ValueError) as refused:
            table.resolve(adapter, "a.safetensors")
        said = str(refused.value)
        assert re.search(rf"(is a LoRA|was made) for ([^(]*, |[^(]* or )?{own}\b", said) and other in said, said


@pytest.mark.parametrize(("height", "fits"), [(96, True), (288, False)])
def test_slices_of_grouped_queries(models, loras: Path, height: int, fits: bool) -> None:
    """Lumina 2 has three queries to a key; ComfyUI's map takes k and v for as high as q, past the weight's end."""
    tensors = {}
    for name, rows in (("q", 288), ("k", height), ("v", height)):
        layer = f"transformer.layers.0.attention.to_{name}"
        tensors |= {f"{layer}.lora_A.weight": torch.ones(2, 288), f"{layer}.lora_B.weight": torch.ones(rows, 2)}
    save_file(tensors, loras / "a.safetensors")
    if not fits:
        with pytest.raises(
            ValueError, match=r"to_k, which changes a weight of shape \(288, 288\), but .*qkv .* \(96, 288\)"
        ):
            stack(models("lumina2").model, [("a.safetensors", 1.0, 1.0)])
        return
    patched, _, _, report = stack(models("lumina2").model, [("a.safetensors", 1.0, 1.0)])
    key = "diffusion_model.layers.0.attention.qkv.weight"
    assert list(patched.patches) == [key] and "not applied" not in report
    change = loaded(patched)[key] - loaded(models("lumina2").model)[key]
    assert torch.allclose(change, torch.full((480, 288), 2.0), atol=1e-5)


def test_one_weight_under_two_names(models, loras: Path, make_lora) -> None:
    make_lora("sd15", loras / "a.safetensors")
    tensors = load_file(loras / "a.safetensors")
    again = {key.replace("diffusion_model.", "lora_unet_", 1).split(".lora_")[0].replace(".", "_") for key in tensors}
    name = next(iter(sorted(name for name in again if name.endswith("attn1_to_q"))))
    extra = {f"{name}.lora_up.weight": torch.ones(320, 1), f"{name}.lora_down.weight": torch.ones(1, 320)}
    save_file({**tensors, **extra}, loras / "a.safetensors")
    with pytest.raises(ValueError, match="and another key both change"):
        stack(models("sd15").model, [("a.safetensors", 1.0, 1.0)])


def test_same_names_in_another_size(models, loras: Path, make_lora) -> None:
    make_lora("sd15_full", loras / "narrow.safetensors")
    with pytest.raises(
        ValueError, match=r"narrow.safetensors was made for .* changes a weight of shape \(32, 32\).*\(320, 320\)"
    ):
        stack(models("sd15").model, [("narrow.safetensors", 1.0, 1.0)])
