"""LoRA on the text encoders of SD 1.5 and SDXL: encoding and gradients are right, a run is as exact as any other."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_management
import pytest
import tiny
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from harness.calls import encode, identities, loaded, relative_error, run_node
from harness.problem import Problem
from harness.runs import STEPS, cancelled, kept
from harness.runs import train as run
from harness.session import training_session
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.training import objective
from lora_loom.lora_core.training.inject import Factors
from lora_loom.nodes.bridge.model.text_encoders import TextDenoiser, tokenized
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.save_lora import SaveLora
from safetensors.torch import load_file
from tiny.text_twin import Text
from torch import Tensor

import nodes

FAMILIES = ["sd15", "sdxl"]
CAPTIONS = ["a red heart", "a (blue:1.4) square, [very] (small)", "", "many words " * 60]
UNLIKE = [CAPTIONS[1], CAPTIONS[3]]  # weighted words, and several windows of tokens
TRIGGER = "number"
pytestmark = pytest.mark.usefixtures("runs")
train = partial(run, alpha=4.0, text_rank=3, text_learning_rate=2e-3)
ROUGH = {"accumulation": 2, "caption_dropout": 0.5, "warmup": 2, "preserve": "picture", "preservation": 1.0}


@pytest.fixture(params=FAMILIES)
def trio(request: pytest.FixtureRequest, models) -> tiny.Loaded:
    return models(request.param)


def text_part(adapter: Adapter) -> dict[str, Any]:
    return {name: layer for name, layer in adapter.layers.items() if name.startswith(TEXT_PREFIX)}


# -- encoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [None, -1, -2])
def test_encoding_is_comfyuis(trio, layer: int | None) -> None:
    clip = trio.clip.clone()
    clip.clip_layer(layer)
    wanted = [encode(clip, caption)[0] for caption in sorted(CAPTIONS)]
    with torch.inference_mode():
        with training_session(trio.model, True, clip.patcher) as patcher, torch.no_grad():
            tokens = [tokens for ((tokens, _),) in tokenized(clip, CAPTIONS).values()]
            found = TextDenoiser(patcher, clip).encode([*tokens, tokens[0]])
    assert found[-1] is found[0]
    for (ours, pooled), (theirs, options) in zip(found, [*wanted, wanted[0]], strict=True):
        assert ours.shape == theirs.shape and relative_error(ours, theirs) < 1e-6
        assert relative_error(pooled, options["pooled_output"]) < 1e-6


# -- gradients ---------------------------------------------------------------------------------------------------------


def gradient(trio: tiny.Loaded, checkpointing: bool) -> Tensor:
    with torch.inference_mode():
        with training_session(trio.model, checkpointing, trio.clip.patcher) as patcher:
            return Problem.of_text(patcher, trio.clip, UNLIKE).gradient()


def test_checkpointing_and_kernels_change_nothing(trio, monkeypatch) -> None:
    plain, recomputed = (gradient(trio, flag) for flag in (False, True))
    assert plain.norm() > 0 and relative_error(recomputed, plain) < 1e-5
    for enabled in (False, True):
        monkeypatch.setattr(
            comfy.ldm.modules.attention.model_management, "pytorch_attention_enabled", lambda e=enabled: e
        )
        assert relative_error(gradient(trio, True), plain) < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_finite_differences(trio, checkpointing: bool) -> None:
    with torch.inference_mode():
        with training_session(trio.model, checkpointing, trio.clip.patcher) as patcher:
            problem = Problem.of_text(patcher, trio.clip, UNLIKE)
            found = problem.gradient()
            for direction in problem.directions(found):
                slope = float(found.double() @ direction.double())
                assert slope == pytest.approx(problem.slope(direction, slope), rel=5e-3)


def test_every_layer_that_counts_has_a_gradient(models) -> None:
    """SDXL reads the last layer but one of both, and CLIP-G's pooled text goes through the last one, too."""
    trio = models("sdxl")
    with torch.inference_mode():
        with training_session(trio.model, True, trio.clip.patcher) as patcher:
            problem = Problem.of_text(patcher, trio.clip, UNLIKE)
            problem.gradient()
            silent = {name for name, branch in problem.factors.branches.items() if not branch.lora_B.grad.any()}
    assert len(problem.factors.branches) == 2 * 3 * 6 and len(silent) == 6
    assert all(".clip_l." in name and ".layers.2." in name for name in silent), "which nothing reads"


# -- a run -------------------------------------------------------------------------------------------------------------


def surroundings(clip: Any) -> dict[str, Any]:
    """All of a CLIP that a session changes for its time."""
    model = clip.cond_stage_model
    encoders = [part for part in model.children() if hasattr(part, "layer_idx")]
    return {
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "forwards": ["forward" in vars(m) for m in model.modules()],
        "tensors": [(p.requires_grad, p.grad, p.is_inference(), p.dtype) for p in model.parameters()],
        "identity": identities(model),
        "options": [(e.layer, e.layer_idx, e.return_projected_pooled, e.execution_device) for e in encoders],
        "patches": (clip.patcher.patches_uuid, len(clip.patcher.patches), clip.patcher.load_device),
        "flag": comfy.model_management.in_training,
    }


def test_result_and_a_clip_left_as_it_was(trio, data) -> None:
    plain, before = encode(trio.clip, "a red heart")[0][0], loaded(trio.clip)
    state = surroundings(trio.clip)
    _, losses, adapter, *_ = train(trio, data)
    text = text_part(adapter)
    assert len(losses["loss"]) == STEPS and all(map(math.isfinite, losses["loss"]))
    assert {layer.rank for layer in text.values()} == {3}
    assert {layer.rank for name, layer in adapter.layers.items() if name not in text} == {2}
    assert {layer.scaling for layer in adapter.layers.values()} == {2.0}
    assert sum(layer.norm() > 0 for layer in text.values()) >= len(text) * 5 // 6
    assert surroundings(trio.clip) == state
    after = trio.clip.cond_stage_model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(encode(trio.clip, "a red heart")[0][0], plain)


def test_same_seed_same_bytes_cut_off_or_not(trio, data, runs: Path) -> None:
    """The cancel comes inside the third step; the step starts over with nothing left of its first half."""
    losses = train(trio, data, **ROUGH)[1]
    whole = kept(runs)
    shutil.rmtree(runs)
    state = surroundings(trio.clip)
    with cancelled(trio, 15):  # a step has 6 forwards
        train(trio, data, **ROUGH)
    assert surroundings(trio.clip) == state
    assert {Path(name).name for name in kept(runs)} == {"state.safetensors", "step_000002.safetensors"}
    assert train(trio, data, **ROUGH)[1] == losses
    assert {name: kept(runs)[name] for name in whole} == whole


def test_failure_leaves_the_clip_as_it_was(models, data) -> None:
    trio = models("sdxl")
    state = surroundings(trio.clip)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("for the test")

    hook = trio.clip.cond_stage_model.clip_g.transformer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            train(trio, data)
    finally:
        hook.remove()
    assert surroundings(trio.clip) == state


def test_every_text_choice_is_a_run_of_its_own(models, data, runs: Path) -> None:
    trio = models("sd15")
    skipped = trio.clip.clone()
    skipped.clip_layer(-2)
    for changes in ({}, {"text_rank": 4}, {"text_learning_rate": 1e-4}, {"clip": skipped}, {"text_rank": 0}):
        train(trio, data, steps=1, **changes)
    assert len(list(runs.iterdir())) == 5


def test_text_encoder_alone_learns(trio, data) -> None:
    """With the model held still, in the very same draws, it does better than a text encoder that cannot learn."""
    choices = {"steps": 12, "batch_size": 4, "learning_rate": 1e-9, "lr_schedule": "constant", "max_grad_norm": 0.0}
    still, learning = (train(trio, data, text_learning_rate=rate, **choices)[1]["loss"] for rate in (1e-9, 1e-2))
    assert learning[0] == still[0] and sum(learning[-4:]) < 0.99 * sum(still[-4:])


def test_preservation_silences_the_text_encoder_too(models, data, monkeypatch) -> None:
    """Held to the base model, text and all, nothing is left to keep before the first step: B is zero."""
    changes: list[float] = []
    preservation = objective.preservation

    def watched(denoiser: Any, factors: Factors, *args: Any) -> Tensor:
        change = preservation(denoiser, factors, *args)
        changes.append(float(change.detach()))
        return change

    monkeypatch.setattr(objective, "preservation", watched)
    train(models("sd15"), data, learning_rate=1e-9, text_learning_rate=1e-2, **{**ROUGH, "warmup": 0})
    assert changes[0] == 0 and changes[-1] > 1e-9, "only what the text encoder learnt can differ"


def test_half_precision_clip(models, data) -> None:
    """Weights in fp16, as published files have them; the encoder computes in fp32, so that nothing overflows."""
    trio = models("sd15")
    with torch.inference_mode():
        clip = tiny.make_clip("sd15")
        clip.cond_stage_model.half()
    before = loaded(clip)
    half, full = train(trio, data, clip=clip), train(trio, data)
    assert half[1]["loss"] == pytest.approx(full[1]["loss"], rel=1e-3)
    for name, layer in text_part(full[2]).items():
        assert half[2].layers[name].distance(layer) < 0.1 * layer.norm()
    assert all(torch.equal(value, before[key]) for key, value in clip.cond_stage_model.state_dict().items())


def test_a_lora_below_is_trained_on(models, data, trained_once, loras: Path) -> None:
    """A CLIP with a stack on it is trained as connected."""
    trio = models("sd15")
    name, _ = save(trio, trained_once(trio, learning_rate=3e-2, text_learning_rate=3e-2), "comfyui")
    model, clip, _, _ = stacked(trio, name, 0.0, 1.0)
    above = train(trio, data, model=model, clip=clip)[1]["loss"]
    assert above[0] != train(trio, data)[1]["loss"][0]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_other_families_are_refused(models, data, runs: Path) -> None:
    with pytest.raises(ValueError, match="text encoder of FLUX.1 dev cannot be trained, only that of SD 1.5 and SDXL"):
        train(models("flux1"), data)
    assert not runs.exists()


def test_a_clip_of_another_model_is_refused(models, data) -> None:
    wanted = "connected CLIP has the text encoders clip_l, but SDXL is trained with clip_l, clip_g; connect the CLIP"
    with pytest.raises(ValueError, match=wanted):
        train(models("sdxl"), data, clip=models("sd15").clip)


def test_hooks_are_refused(models, data) -> None:
    trio = models("sd15")
    clip = trio.clip.clone()
    clip.patcher.forced_hooks = comfy.hooks.HookGroup()
    with pytest.raises(ValueError, match="connected CLIP has hooks"):
        train(trio, data, clip=clip)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_once(data) -> Callable[..., Adapter]:
    """Trains a LoRA of a model and settings the first time that it is asked for."""

    @cache
    def made(trio: tiny.Loaded, **settings: Any) -> Adapter:
        return train(trio, data, **settings)[2]

    return made


@pytest.fixture
def trained(trio, trained_once) -> Adapter:
    """A LoRA that is seen, as it learned fast."""
    return trained_once(trio, learning_rate=3e-2, text_learning_rate=3e-2, targets="attention+mlp")


def save(trio: tiny.Loaded, adapter: Adapter, style: str, **more: Any) -> tuple[str, str]:
    inputs = {"adapter": adapter, "model": trio.model, "clip": trio.clip, "name": style, "dtype": "fp32", **more}
    return run_node(SaveLora, format=style, **inputs)


def stacked(trio: tiny.Loaded, name: str, strength: float, text_strength: float) -> tuple[Any, Any, Any, str]:
    row = {"lora_1": name, "strength_1": strength, "text_strength_1": text_strength}
    return run_node(LoadLoraStack, model=trio.model, clip=trio.clip, **row)[:4]


KOHYA = {"sd15": {"lora_te_text_model"}, "sdxl": {"lora_te1_text_model", "lora_te2_text_model"}}
DIFFUSERS = {"sd15": {"text_encoder"}, "sdxl": {"text_encoder", "text_encoder_2"}}


@pytest.mark.parametrize("style", ["comfyui", "kohya", "diffusers"])
def test_files_stack_with_their_text_strength(trio, trained, loras: Path, caplog, style: str) -> None:
    name, report = save(trio, trained, style)
    assert f", 0 unmatched, {len(trained.layers)} layers applied" in report
    plain = encode(trio.clip, "a red heart")[0]
    for text_strength in (0.0, 1.0):
        model, clip, _, _ = stacked(trio, name, 0.0, text_strength)
        by_core = nodes.LoraLoader().load_lora(trio.model, trio.clip, name, 0.0, text_strength)[1]
        ours, theirs = encode(clip, "a red heart")[0], encode(by_core, "a red heart")[0]
        assert not model.patches and relative_error(ours[0], theirs[0]) < 1e-5
        assert relative_error(ours[1]["pooled_output"], theirs[1]["pooled_output"]) < 1e-5
        moved = relative_error(ours[0], plain[0])
        assert moved > 0.01 if text_strength else moved == 0
    assert "NOT LOADED" not in caplog.text and "lora key not loaded" not in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_the_trainers(models, trained_once, loras: Path, family: str) -> None:
    trio = models(family)
    adapter = trained_once(trio)
    kohya, diffusers = (load_file(loras / save(trio, adapter, style)[0]) for style in ("kohya", "diffusers"))
    assert {name.split("_encoder_")[0] for name in kohya if name.startswith("lora_te")} == KOHYA[family]
    text = [name for name in diffusers if name.startswith("text_encoder")]
    assert {name.split(".")[0] for name in text} == DIFFUSERS[family]
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in text


def test_diffusers_gives_the_same_text(trio, trained, loras: Path) -> None:
    twin = Text(trio.clip)
    plain = encode(trio.clip, "a red heart")[0]
    assert relative_error(twin("a red heart")[0], plain[0]) < 1e-6, "the twins are the same network"
    name, _ = save(trio, trained, "diffusers")
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(loras / name))
    for prefix, network in zip(("text_encoder", "text_encoder_2"), twin.networks.values(), strict=False):
        StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(state, alphas, network, prefix=prefix)
    text, pooled = twin("a red heart")
    ours = encode(stacked(trio, name, 1.0, 1.0)[1], "a red heart")[0]
    assert relative_error(text, plain[0]) > 0.01, "the LoRA must be seen"
    assert relative_error(text, ours[0]) < 1e-5
    if "clip_g" in twin.networks:
        assert (
            relative_error(pooled, ours[1]["pooled_output"]) < 1e-5 < relative_error(pooled, plain[1]["pooled_output"])
        )


@pytest.mark.parametrize("style", ["comfyui", "kohya", "diffusers"])
def test_saving_asks_for_clip(models, trained_once, loras: Path, style: str) -> None:
    trio = models("sd15")
    adapter = trained_once(trio)
    with pytest.raises(
        ValueError,
        match=f"{len(text_part(adapter))} of the {len(adapter.layers)} layers belong to the text encoder; connect CLIP",
    ):
        save(trio, adapter, style, clip=None)
    assert not list(loras.iterdir())


def test_merged_with_its_text_layers(trio, data, trained_once, loras: Path) -> None:
    """A file and an adapter become one whose text part is the sum."""
    first = trained_once(trio, learning_rate=3e-2, text_learning_rate=3e-2)
    second = train(trio, data, seed=8, text_rank=2, learning_rate=3e-2, text_learning_rate=3e-2)[2]
    name, _ = save(trio, first, "kohya")
    row = [(name, 0.5, 0.7)]
    inputs = {"model": trio.model, "clip": trio.clip, "rank": 0, "strengths": "-0.4", "lora_stack": row}
    merged, _, report, _ = run_node(MergeLora, adapters={"adapter0": second}, **inputs)
    assert "the sum is exact" in report
    for name, layer in merged.layers.items():
        strength = 0.7 if name.startswith(TEXT_PREFIX) else 0.5
        wanted = strength * first.layers[name].delta_weight() - 0.4 * second.layers[name].delta_weight()
        assert torch.allclose(layer.delta_weight(), wanted, atol=1e-6 * float(wanted.abs().max() + 1e-12)), name
    with pytest.raises(ValueError, match="connect CLIP"):
        run_node(MergeLora, adapters={"adapter0": second}, **{**inputs, "clip": None, "lora_stack": None})


def test_header_tells_of_the_text_encoder(models, data) -> None:
    header = train(models("sdxl"), data, text_learning_rate=0.0)[2].metadata
    found = {name: header[f"ss_{name}"] for name in ("unet_lr", "text_encoder_lr", "network_dim", "network_alpha")}
    assert found == {"unet_lr": "0.001", "text_encoder_lr": "0.0005", "network_dim": "2", "network_alpha": "4.0"}
    assert json.loads(header["ss_network_args"]) == {"targets": ["attention"], "text_rank": "3"}
