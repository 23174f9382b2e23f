"""Resize LoRA and Extract LoRA; and a stack baked into a model by ComfyUI's own nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import tiny
import torch
from comfy.patcher_extension import PatcherInjection
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_model_merging import ModelSave
from harness.calls import encode, loaded, relative_error, run_node
from harness.kinds import NAMES, written
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.files.hashes import data_hash, file_hash
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.chain import chain
from lora_loom.lora_core.stack.rows import Row
from lora_loom.lora_core.stack.weighted import Weighted
from lora_loom.nodes.bridge.merging.save import save_proven
from lora_loom.nodes.bridge.model.names import names_of
from lora_loom.nodes.bridge.model.weights import base_weight
from lora_loom.nodes.bridge.stack.apply_chain import apply_chain
from lora_loom.nodes.bridge.stack.entries import load_rows
from lora_loom.nodes.extract_lora import ExtractLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.resize_lora import ResizeLora
from tiny.stored import dequantised, load_stored

OFF = {"rank": 0, "energy": 1.0, "size_mb": 0.0, "strength": 1.0, "text_strength": 1.0}


def resize(model: Any, adapter: Adapter | None = None, name: str = "None", **choices: Any) -> tuple[Any, ...]:
    return run_node(ResizeLora, model=model, adapter=adapter, lora_name=name, **{**OFF, **choices})


def extract(a: Any, b: Any, rank: int = 8, **choices: Any) -> tuple[Adapter, str]:
    made, _, report, chart = run_node(ExtractLora, model_a=a, model_b=b, rank=rank, **{"energy": 1.0, **choices})
    assert chart.shape == (1, 320, 1280, 3)
    return made, report


def applied(model: Any, clip: Any, adapter: Adapter) -> tuple[Any, Any]:
    """In the weights, of few bits as they may be."""
    return apply_chain(model, clip, chain([Weighted("", adapter, 1.0, 1.0)]), "weights")[:2]


@pytest.fixture
def sd15(models) -> tiny.Loaded:
    return models("sd15")


# -- resize ------------------------------------------------------------------------------------------------------------


def test_a_file_and_an_adapter_are_resized_alike(sd15, loras: Path, random_adapter) -> None:
    header = {"modelspec.title": "Ink", "ss_steps": "900", "modelspec.tags": "style", "sshs_model_hash": "stale",
              "ss_network_args": '{"algo": "loha"}'}  # fmt: skip
    adapter = Adapter(random_adapter(sd15.model, rank=6).layers, header)
    save_proven(adapter, loras / "a.safetensors", "kohya", torch.float32, sd15.model)
    by_file, _, _, report, chart = resize(sd15.model, name="a.safetensors", rank=2)
    by_socket = resize(sd15.model, adapter, rank=2)[0]
    assert chart.shape == (1, 320, 1280, 3) and "relative error: " in report
    for name, layer in adapter.layers.items():
        sigma = torch.linalg.svdvals(layer.delta_weight().double().flatten(1))
        assert by_file.layers[name].rank == 2
        assert by_file.layers[name].distance(layer) == pytest.approx(float(sigma[2:].norm()), rel=1e-4)
        assert by_file.layers[name].distance(by_socket.layers[name]) < 1e-5 * layer.norm()
    (parent,) = json.loads(by_file.metadata["lora_loom.parents"])
    assert (parent["name"], parent["sha256"]) == ("a", data_hash(loras / "a.safetensors")) and "hash_of" not in parent
    told = by_file.metadata
    assert (told["modelspec.title"], told["ss_steps"], told["modelspec.tags"]) == ("Ink", "900", "style")
    assert told["ss_network_dim"] == "2" and told.get("sshs_model_hash") != "stale"
    assert "ss_network_args" not in told, "of another network"
    how = json.loads(told["lora_loom.merge"])
    assert (how["method"], how["rank"], how["keep"], how["drop"]) == ("resize", 2, [], []) and how["error"] > 0


def test_the_file_says_by_what_it_was_cut(sd15, random_adapter) -> None:
    adapter = random_adapter(sd15.model, rank=6)
    made = resize(sd15.model, adapter, ratio=1.5, conv_rank=3)[0]
    how = json.loads(made.metadata["lora_loom.merge"])
    assert (how["ratio"], how["conv_rank"]) == (1.5, 3) and "share" not in how
    for name, layer in adapter.layers.items():
        sigma = torch.linalg.svdvals(layer.delta_weight().double().flatten(1))
        assert made.layers[name].rank == int((sigma * 1.5 >= sigma[0]).sum()), name
    with pytest.raises(ValueError, match="ratio is 0.5.*ratio 0 or at least 1"):
        resize(sd15.model, adapter, ratio=0.5)


def test_strength_is_folded_in_and_minus_one_is_the_inverse(sd15, random_adapter, add_text) -> None:
    adapter = add_text(random_adapter(sd15.model), sd15.clip)
    half = resize(sd15.model, adapter, strength=0.5, text_strength=-1.0, clip=sd15.clip)[0]
    for name, layer in adapter.layers.items():
        factor = -1.0 if name.startswith(TEXT_PREFIX) else 0.5
        assert half.layers[name].distance(layer.scaled(factor)) < 1e-6 * layer.norm()
    assert not any(
        name.startswith(TEXT_PREFIX)
        for name in resize(sd15.model, adapter, text_strength=0.0, clip=sd15.clip)[0].layers
    )


def test_splitting_by_blocks_loses_nothing(sd15, random_adapter) -> None:
    adapter = random_adapter(sd15.model)
    kept, _, rest, report, _ = resize(sd15.model, adapter, keep="attn1, attn2.to_k", drop="attn1.to_v")
    assert kept.layers.keys() | rest.layers.keys() == adapter.layers.keys()
    assert not kept.layers.keys() & rest.layers.keys() and f"{len(rest.layers)} layers are in the output rest" in report
    assert all(("attn1" in name or "attn2.to_k" in name) and "attn1.to_v" not in name for name in kept.layers)
    for name, layer in adapter.layers.items():
        assert (kept.layers.get(name) or rest.layers[name]).distance(layer) < 1e-6 * layer.norm()


def test_layers_at_strength_0_are_in_neither_part(sd15, random_adapter, add_text) -> None:
    adapter = add_text(random_adapter(sd15.model), sd15.clip)
    kept, _, rest, *_ = resize(sd15.model, adapter, keep="diffusion_model", text_strength=0.0, clip=sd15.clip)
    assert isinstance(rest, ExecutionBlocker) and not any(name.startswith(TEXT_PREFIX) for name in kept.layers)
    for choices in ({"keep": TEXT_PREFIX, "text_strength": 0.0}, {"strength": 0.0, "drop": TEXT_PREFIX}):
        with pytest.raises(ValueError, match="nothing is left of .* keep and drop select"):
            resize(sd15.model, adapter, clip=sd15.clip, **choices)
    with pytest.raises(ValueError, match="strength and text_strength are both 0"):
        resize(sd15.model, adapter, clip=sd15.clip, strength=0.0, text_strength=0.0)
    _, _, rest, *_ = resize(sd15.model, adapter, strength=-0.5, drop="attn1", clip=sd15.clip)
    how = json.loads(rest.metadata["lora_loom.merge"])
    assert how["rest"] and how["drop"] == ["attn1"] and json.loads(rest.metadata["lora_loom.parents"])[0]["sha256"]


def test_what_is_not_left_out_blocks_what_needs_it(sd15, random_adapter) -> None:
    blocked = resize(sd15.model, random_adapter(sd15.model))[2]
    assert isinstance(blocked, ExecutionBlocker) and "rest is empty" in blocked.message


def test_what_cannot_be_resized(sd15, loras: Path, random_adapter) -> None:
    adapter = random_adapter(sd15.model)
    save_proven(adapter, loras / "a.safetensors", "kohya", torch.float32, sd15.model)
    with pytest.raises(ValueError, match="no LoRA is given; choose a file in lora_name, or connect an adapter"):
        resize(sd15.model)
    with pytest.raises(
        ValueError, match=r"both an adapter and the file a.safetensors are given; set lora_name to None"
    ):
        resize(sd15.model, adapter, name="a.safetensors")
    with pytest.raises(ValueError, match="no layer has 'single_blocks' in its name; there are diffusion_model."):
        resize(sd15.model, adapter, keep="single_blocks")
    assert "x.safetensors" in ResizeLora.validate_inputs("x.safetensors")
    assert "no LoRA is given" in ResizeLora.validate_inputs("None")
    assert ResizeLora.validate_inputs("None", None) is True, "an adapter is connected"


# -- extract -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_a_lora_comes_back_out_of_a_model_that_has_it(models, random_adapter, family: str) -> None:
    """Whether the model is loaded at that moment, its weights patched, or not; nothing of it changes."""
    model, adapter = models(family).model, random_adapter(models(family).model, 4, 3.0)
    with torch.inference_mode():
        patched = applied(model, None, adapter)[0]
    found, report = extract(patched, model)
    assert found.layers.keys() == adapter.layers.keys() and "biases" not in report
    for name, layer in adapter.layers.items():
        assert found.layers[name].distance(layer) < 1e-5 * layer.norm() and found.layers[name].rank == 4
    loaded(patched)
    again, _ = extract(patched, model)
    assert all(again.layers[name].distance(layer) < 1e-5 * layer.norm() for name, layer in adapter.layers.items())


def dense_change(model: Any, layers: list[str], size: float = 0.1) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model with full-rank changes of a few weights, as merges of checkpoints make them."""
    tuned, generator, changes = model.clone(), torch.Generator().manual_seed(0), {}
    for name in layers:
        weight = model.model.get_parameter(name)
        changes[name] = torch.randn(weight.shape, generator=generator) * size * float(weight.float().std())
    tuned.add_patches({name: ("diff", (change,)) for name, change in changes.items()})
    return tuned, changes


def test_a_tuned_model_at_a_true_error(sd15, loras: Path) -> None:
    keys = [
        key
        for key in sd15.model.model.state_dict()
        if key.startswith("diffusion_model.") and key.endswith("to_q.weight")
    ]
    bias = "diffusion_model.out.2.bias"
    tuned, changes = dense_change(sd15.model, [*keys[:3], bias])
    found, report = extract(tuned, sd15.model, rank=5)
    assert found.layers.keys() == {key.removesuffix(".weight") for key in keys[:3]}
    told = json.loads(found.metadata["lora_loom.merge"])
    lost = total = 0.0
    for key in keys[:3]:
        sigma = torch.linalg.svdvals(changes[key].double())
        left = changes[key].double() - found.layers[key.removesuffix(".weight")].delta_weight().double()
        assert float(left.norm()) == pytest.approx(float(sigma[5:].norm()), rel=0.02)
        assert told["errors"][key.removesuffix(".weight")] == pytest.approx(float(left.norm() / sigma.norm()), rel=0.06)
        lost, total = lost + float(left.square().sum()), total + float(sigma.square().sum())
    assert told["error"] == pytest.approx((lost / total) ** 0.5, rel=0.06) and told["method"] == "extract"
    share = float(changes[bias].double().norm()) / total**0.5
    assert f"1 biases and norms also differ and are not in the LoRA, for example {bias}" in report
    assert f"their difference is {share:.2g} times" in report
    save_proven(found, loras / "x.safetensors", "kohya", torch.float32, sd15.model)
    assert extract(tuned, sd15.model, 5, keep="attn1")[0].layers.keys() < found.layers.keys()


def test_text_encoders_too(sd15, random_adapter, add_text) -> None:
    adapter = add_text(random_adapter(sd15.model), sd15.clip)
    with torch.inference_mode():
        model, clip = applied(sd15.model, sd15.clip, adapter)
    found, _ = extract(model, sd15.model, clip_a=clip, clip_b=sd15.clip)
    assert found.layers.keys() == adapter.layers.keys()
    with torch.inference_mode():
        again = applied(sd15.model, sd15.clip, found)[1]
    assert relative_error(encode(again, "a heart")[0][0], encode(clip, "a heart")[0][0]) < 1e-5
    with pytest.raises(ValueError, match="connect both clip_a and clip_b, or neither"):
        extract(model, sd15.model, clip_a=clip)


@pytest.mark.parametrize("form", ["fp8_e4m3fn", "scaled_fp8", "nvfp4"])
def test_bases_of_few_bits(tmp_path: Path, random_adapter, form: str) -> None:
    """The change is read beside the weight, not through its rounding."""
    with torch.inference_mode():
        model = load_stored("sd15", tmp_path, form)
        adapter = random_adapter(model, 4, 3.0)
        patched = applied(model, None, adapter)[0]
    found, _ = extract(patched, model)
    assert found.layers.keys() == adapter.layers.keys()
    for name, layer in adapter.layers.items():
        assert found.layers[name].distance(layer) < 1e-4 * layer.norm(), name


@pytest.fixture
def packed() -> Any:
    """A MODEL of a loader of its own."""
    row = tiny.FAMILIES["flux1"]
    with torch.inference_mode():
        return tiny.packed.load_packed(row, tiny.built(row, "meta").diffusion_model)


def stacked(model: Any, rows: str, apply: str = "auto") -> Any:
    return run_node(LoadLoraStack, model=model, rows=rows, apply=apply)[0]


@pytest.mark.parametrize("form", ["fp8_e4m3fn", "nvfp4", "packed"])
def test_loras_beside_the_layers(tmp_path: Path, request, loras: Path, make_lora, form: str) -> None:
    """Their exact sum, and of what both models have nothing."""
    family = "flux1" if form == "packed" else "sd15"
    with torch.inference_mode():
        model = request.getfixturevalue("packed") if form == "packed" else load_stored(family, tmp_path, form)
    ink, oil = (make_lora(family, loras / f"{name}.safetensors", seed=seed) for seed, name in enumerate(("ink", "oil")))
    one = stacked(model, "<lora:ink:0.5>")
    two = stacked(one, "<lora:oil:-0.8>")
    assert one.injections and two.injections
    both, report = extract(two, model)
    assert both.layers.keys() == ink.layers.keys() and "relative error" not in report
    for name, found in both.layers.items():
        wanted = LowRank.concat([ink.layers[name].scaled(0.5), oil.layers[name].scaled(-0.8)])
        assert found.distance(wanted) < 1e-6 * wanted.norm() and found.rank == 8
    last = extract(two, one)[0]
    for name, found in last.layers.items():
        assert found.distance(oil.layers[name].scaled(-0.8)) < 1e-6 * found.norm() and found.rank == 4
    parents = [[parent["name"] for parent in json.loads(each.metadata["lora_loom.parents"])] for each in (both, last)]
    assert parents == [["ink", "oil"], ["oil"]]
    less = extract(stacked(model, "<lora:ink:0.2>"), one)[0]
    assert all(
        found.distance(ink.layers[name].scaled(-0.3)) < 1e-6 * found.norm() for name, found in less.layers.items()
    )
    small, report = extract(two, model, rank=2)
    for name, found in small.layers.items():
        sigma = both.layers[name].singular_values()
        assert found.distance(both.layers[name]) == pytest.approx(float(sigma[2:].norm()), rel=1e-4)


def test_a_change_in_the_weight_and_one_beside_it(sd15, loras: Path, make_lora) -> None:
    ink = make_lora("sd15", loras / "ink.safetensors")
    layer = next(iter(ink.layers))
    tuned, changes = dense_change(sd15.model, [f"{layer}.weight"])
    found, _ = extract(stacked(tuned, "<lora:ink:0.7>", "beside"), sd15.model, rank=1024)
    wanted = changes[f"{layer}.weight"] + 0.7 * ink.layers[layer].delta_weight()
    assert relative_error(found.layers[layer].delta_weight(), wanted) < 1e-5
    assert found.layers.keys() == ink.layers.keys()


def test_other_kinds_beside_the_layers(tmp_path: Path, loras: Path) -> None:
    with torch.inference_mode():
        model = load_stored("sd15", tmp_path, "fp8_e4m3fn")
    name = written(loras, "LoHa", model, "sd15")
    tuned = stacked(model, f"<lora:{name}:0.7>")
    assert tuned.injections and not tuned.patches
    found, _ = extract(tuned, model, rank=1024)
    assert len(found.layers) == len(NAMES["sd15"])
    for layer, change in load_rows([Row(name, 0.7, 0.0)], names_of(model))[0].adapter.others.items():
        wanted = change[0].difference(torch.zeros(change[0].shape))
        made = found.layers[layer].delta_weight().reshape(wanted.shape)
        assert relative_error(made, 0.7 * wanted) < 1e-4, layer
    with pytest.raises(ValueError, match="on for only part of sampling"):
        extract(stacked(model, f"<lora:{name}:0.7:end=0.5>"), model)


def test_packed_weights_are_read_as_their_layers_see_them(packed) -> None:
    exact = dequantised("flux1", packed).model.state_dict()
    for name in (name for name, _ in packed.model.named_parameters()):
        weight = base_weight(packed, name, torch.device("cpu"))
        assert type(weight) is torch.Tensor and torch.equal(weight.float(), exact[name]), name


def test_patches_in_packed_weights(packed, random_adapter, models) -> None:
    """Those of other nodes, whether they are in the packed tensors at that moment or not; and of two ways to keep a
    model, one packed."""
    adapter = random_adapter(models("flux1").model, 4, 3.0)
    tuned, twin = packed.clone(), dequantised("flux1", packed)
    for each in (tuned, twin):
        each.add_patches(
            {f"{name}.weight": ("diff", (layer.delta_weight(),)) for name, layer in adapter.layers.items()}
        )
    found = [extract(tuned, packed)[0], extract(twin, packed)[0]]
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([tuned], force_full_load=True)
    found += [extract(twin, packed)[0], extract(tuned, packed)[0]]
    for each in found:
        assert each.layers.keys() == adapter.layers.keys()
        for name, layer in adapter.layers.items():
            assert each.layers[name].distance(layer) < 1e-4 * layer.norm(), name


def test_what_cannot_be_extracted(models, random_adapter, loras: Path, make_lora) -> None:
    model = models("sd15").model
    with pytest.raises(ValueError, match="are the same in all selected layers"):
        extract(model.clone(), model)
    with pytest.raises(ValueError, match="model_a is a FLUX.1 dev model and model_b a SD 1.5 model"):
        extract(models("flux1").model, model)
    with pytest.raises(ValueError, match="use two models of the same size"):
        extract(models("sd15_full").model, model)
    beside = model.clone()
    beside.set_injections("bypass_lora", [PatcherInjection(inject=print, eject=print)])
    with pytest.raises(ValueError, match=r"model_a has changes outside its weights \(bypass_lora\)"):
        extract(beside, model)
    make_lora("sd15", loras / "ink.safetensors")
    with pytest.raises(ValueError, match="model_b has LoRAs that are on for only part of sampling"):
        extract(model, stacked(model, "<lora:ink:end=0.5>"))


def test_a_cancel_is_heeded(sd15, random_adapter) -> None:
    with torch.inference_mode():
        patched = applied(sd15.model, None, random_adapter(sd15.model))[0]
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            extract(patched, sd15.model)
    finally:
        comfy.model_management.interrupt_current_processing(False)


# -- bake --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_comfyui_bakes_a_stack_into_a_file_that_it_loads(models, random_adapter, family: str) -> None:
    model, adapter = models(family).model, random_adapter(models(family).model)
    with torch.inference_mode():
        patched = applied(model, None, adapter)[0]
        ModelSave().save(patched, "lora_loom_baked")
        (path,) = Path(folder_paths.get_output_directory()).glob("lora_loom_baked*.safetensors")
        saved = comfy.sd.load_diffusion_model(str(path))
        live, baked = loaded(patched), loaded(saved)
    found = extract(saved, model)[0]
    (parent,) = json.loads(found.metadata["lora_loom.parents"])
    assert parent == {"name": path.name, "sha256": file_hash(path), "hash_of": "file", "strength": 1.0}
    assert found.layers.keys() == adapter.layers.keys()
    path.unlink()
    for name in adapter.layers:
        assert relative_error(baked[f"{name}.weight"], live[f"{name}.weight"]) < 1e-6
