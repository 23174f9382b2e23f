"""Patches of other nodes on a MODEL are served in training as samplers serve them, timed by noise level, or named."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from harness.calls import run_node
from harness.runs import on_forward, train
from harness.session import training_session
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.previews import TrainingPreviews

NODES = {
    "PatchModelAddDownscale": ("nodes_model_downscale", {
        "block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.35,
        "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"}),
    "SelfAttentionGuidance": ("nodes_sag", {"scale": 0.5, "blur_sigma": 2.0}),
    "HyperTile": ("nodes_hypertile", {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    "TomePatchModel": ("nodes_tomesd", {"ratio": 0.3}),
    "NAGuidance": ("nodes_nag", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    "UNetSelfAttentionMultiply": ("nodes_attention_multiply", {"q": 1.1, "k": 1.0, "v": 1.0, "out": 1.0}),
}  # fmt: skip
OF_SAMPLING = {  # which act on what guidance or whole samplings make of forwards
    "RescaleCFG": ("nodes_model_advanced", {"multiplier": 0.7}),
    "EasyCacheNode": ("nodes_easycache", {
        "reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}),
    "LazyCacheNode": ("nodes_easycache", {
        "reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}),
    "PerturbedAttentionGuidance": ("nodes_pag", {"scale": 3.0}),
    "TCFG": ("nodes_tcfg", {}),
    "APG": ("nodes_apg", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.1}),
    "SkipLayerGuidanceDiT": ("nodes_slg", {
        "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "double_layers": "0", "single_layers": "0",
        "rescaling_scale": 0.0}),
}  # fmt: skip


def noded(trio: Any, name: str) -> Any:
    module, inputs = (NODES | OF_SAMPLING)[name]
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    if hasattr(node, "FUNCTION") and not hasattr(node, "define_schema"):  # of ComfyUI's first kind
        return replace(trio, model=getattr(node(), node.FUNCTION)(model=trio.model, **inputs)[0])
    return replace(trio, model=run_node(node, model=trio.model, **inputs)[0])


def patched(trio: Any, put: Callable[[Any], object]) -> Any:
    model = trio.model.clone()
    put(model)
    return replace(trio, model=model)


@pytest.mark.parametrize("name", NODES)
def test_patches_of_comfyui_train(models, data, runs: Path, name: str) -> None:
    trio = models("sd15_full" if name == "PatchModelAddDownscale" else "sd15")
    assert len(train(noded(trio, name), data, steps=1).loss_map["loss"]) == 1


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_what_acts_on_samplings_changes_no_training(models, data, runs: Path, family: str) -> None:
    """All of it at once, and through previews, which are such samplings: the LoRA is that of the bare MODEL."""
    trio = models(family)
    bare, many = train(trio, data, steps=2, run_name="bare"), trio
    for name in ("RescaleCFG", "PerturbedAttentionGuidance", "TCFG", "APG", "SkipLayerGuidanceDiT", "EasyCacheNode"):
        many = noded(many, name)
    drawn = {"prompts": "a tree", "negative": "dull", "every": 1, "seed": 11, "strength": 1.0, "width": 64}
    drawn |= {"height": 64, "steps": 3, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}
    made = train(many, data, steps=2, run_name="many", previews=run_node(TrainingPreviews, **drawn)[0])
    lazy = train(noded(trio, "LazyCacheNode"), data, steps=2, run_name="lazy")
    for each in (made, lazy):
        assert each.loss_map == bare.loss_map
        assert all(torch.equal(value, each.lora_model[name]) for name, value in bare.lora_model.items())


@pytest.mark.parametrize("name", ["TomePatchModel", "HyperTile"])
def test_patches_for_another_kind_of_network_are_named(models, data, runs: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot be trained with {name} \(comfy_extras.*without that node"):
        train(noded(models("flux1"), name), data, steps=1)


def test_a_patch_finds_what_a_sampler_gives(models, data, runs: Path) -> None:
    seen: list[tuple[list[float], int, list[float]]] = []

    def patch(q, k, v, extra):
        assert extra["cond_or_uncond"] == [0] and len(extra["uuids"]) == 1
        assert extra["sample_sigmas"][-1] == 0 and (extra["sample_sigmas"].diff() < 0).all()
        level = extra["sigmas"][0].item()  # also where tensors have no memory
        assert torch.is_inference_mode_enabled() or level in extra["sample_sigmas"].tolist() or len(q) == 1
        seen.append((extra["sigmas"].tolist(), len(q), extra["sample_sigmas"].tolist()))
        return q, k, v

    trio = patched(models("sd15"), lambda model: model.set_model_attn1_patch(patch))
    with on_forward(trio) as sizes:
        train(trio, data, steps=2, batch_size=2)
    assert sizes == [1] * 4, "samples of several noise levels go one by one"
    levels = {tuple(level) for level, _, schedule in seen if len(schedule) > 2}
    assert len(levels) == 4 and all(len(level) == 1 for level in levels)
    assert all(level[0] in schedule for level, _, schedule in seen)


def test_deep_shrink_acts_by_the_noise_level_of_each_sample(models) -> None:
    """Against one sample at a time, which is what samplers do."""
    trio = noded(models("sd15_full"), "PatchModelAddDownscale")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with training_session(trio.model, False) as patcher, torch.no_grad():
        attention = patcher.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2
        conditioning = [[torch.ones(1, 77, attention.to_k.in_features), {}]]
        denoiser = ComfyDenoiser(patcher)
        x, sigma = x.to(denoiser.device), denoiser.sigma(torch.tensor([0.99, 0.2])).to(denoiser.device)
        condition = denoiser.condition(conditioning, x[0])
        both = denoiser.denoised(x, sigma, [condition] * 2)
        alone = [denoiser.denoised(x[i : i + 1], sigma[i : i + 1], [condition]) for i in (0, 1)]
        assert torch.equal(both, torch.cat(alone))
    with training_session(models("sd15_full").model, False) as patcher, torch.no_grad():
        bare = ComfyDenoiser(patcher).denoised(x, sigma, [condition] * 2)
    assert not torch.allclose(bare[0], both[0], rtol=1e-3) and torch.allclose(bare[1], both[1], rtol=1e-4, atol=1e-5)


def wrapper(executor, *args, **kwargs):
    return executor(*args, **kwargs)


def without_gradient(executor, *args, **kwargs):
    with torch.no_grad():
        return executor(*args, **kwargs)


def reads_something_else(q, k, v, extra):
    return q * extra["no_such_thing"], k, v


def halves(h, extra):
    return h[:, :, ::2]


@pytest.mark.parametrize(
    ("put", "name"),
    [
        (lambda m: m.set_model_attn1_patch(reads_something_else), "reads_something_else"),
        (lambda m: m.set_model_input_block_patch(halves), "halves"),
        (lambda m: m.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "x", without_gradient), "without_gradient"),
        (lambda m: m.set_model_unet_function_wrapper(lambda call, args: args["x"]), "test_guests"),
    ],
)
def test_what_cannot_be_trained_is_named_before_the_pictures_are_encoded(
    models, data, runs: Path, monkeypatch: pytest.MonkeyPatch, put: Callable, name: str
) -> None:
    encoded: list[object] = []
    monkeypatch.setattr(comfy.sd.VAE, "encode", lambda *_: encoded.append(1))
    words = f"cannot be trained with {name if name != 'test_guests' else '.*'}.*test_guests.*without that node"
    with pytest.raises(ValueError, match=words):
        train(patched(models("sd15"), put), data, steps=1)
    assert not encoded and not list(runs.glob("*"))


def test_wrappers_of_a_forward_are_run_and_those_of_sampling_are_not(models, data, runs: Path) -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable:
        return lambda executor, *args, **kwargs: (calls.append(name), executor(*args, **kwargs))[1]

    def put(model) -> None:
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "mine", counted("forward"))
        for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.DIFFUSION_MODEL):
            model.add_wrapper_with_key(kind, "caching", counted("caching"))
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", counted("compiled"))

    train(patched(models("sd15"), put), data, steps=1)
    assert set(calls) == {"forward"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_with_a_span_are_heeded_by_sigma(models, data, runs: Path, make_lora, loras: Path, checkpointing) -> None:
    """Losses and the LoRA: a block that is computed once more in the backward pass is computed as before."""
    trio = models("sd15")
    make_lora("sd15", loras / "s.safetensors", size=0.5)

    def trained(row: str):
        model = run_node(LoadLoraStack, model=trio.model, rows=row)[0] if row else trio.model
        name = f"r{len(row)}{checkpointing}"
        choices = {"run_name": name, "batch_size": 1, "gradient_checkpointing": checkpointing}
        return train(replace(trio, model=model), data, **choices)

    plain, whole = trained(""), trained("<lora:s:1>")
    never, timed = trained("<lora:s:1:end=0.0005>"), trained("<lora:s:1:start=0.5>")
    assert never.loss_map == plain.loss_map and whole.loss_map != plain.loss_map
    assert all(torch.equal(value, never.lora_model[name]) for name, value in plain.lora_model.items())
    assert timed.loss_map not in (plain.loss_map, whole.loss_map)


def test_a_span_is_trained_the_same_with_and_without_recomputing(
    models, data, runs: Path, make_lora, loras: Path
) -> None:
    trio = models("sd15")
    make_lora("sd15", loras / "s.safetensors", size=0.5)
    model = run_node(LoadLoraStack, model=trio.model, rows="<lora:s:1:start=0.5>")[0]
    one, two = (
        train(replace(trio, model=model), data, run_name=f"c{on}", gradient_checkpointing=on) for on in (True, False)
    )
    for name, value in one.lora_model.items():
        torch.testing.assert_close(value, two.lora_model[name], rtol=1e-4, atol=1e-6)


def test_a_run_that_failed_leaves_nothing_while_its_error_is_held(models, data, runs: Path) -> None:
    trio = models("sd15")

    def breaks(q, k, v, extra):
        if type(q) is torch.Tensor:  # not in the rehearsal
            raise RuntimeError("this patch fails")
        return q, k, v

    network = trio.model.model.diffusion_model
    before = [(len(m._forward_hooks), "forward" in vars(m)) for m in network.modules()]
    with pytest.raises(RuntimeError, match="this patch fails") as held:
        train(patched(trio, lambda model: model.set_model_attn1_patch(breaks)), data, run_name="a")
    sys.last_exc = held.value
    try:
        assert [(len(m._forward_hooks), "forward" in vars(m)) for m in network.modules()] == before
        x = torch.ones(2, requires_grad=True)
        assert (x * x).sum().backward() is None and x.grad.tolist() == [2, 2], "no hook of torch is left"
        train(trio, data, run_name="b")
    finally:
        del sys.last_exc
