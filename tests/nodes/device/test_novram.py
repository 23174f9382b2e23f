"""Training and masks under --novram, where ComfyUI loads nothing and casts each layer into a buffer it uses again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import pytest
import tiny
import torch
from harness.calls import encode
from harness.problem import Problem
from harness.session import training_session
from harness.streams import gradients
from lora_loom.lora_core.stack.rows import parse
from lora_loom.nodes.bridge.stack.apply_stack import apply_stack


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_weights_lie_on_the_device_when_they_are_used(models, monkeypatch, share: float) -> None:
    trio, manager = models("flux1"), comfy.model_management
    (kept,) = gradients(trio, trio.model, 0.0, steps=1)
    monkeypatch.setattr(manager, "vram_state", manager.VRAMState.NO_VRAM)
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with torch.inference_mode(), training_session(trio.model, True, offload=share) as patcher:
        problem = Problem.of_model(patcher, conditioning)
        places = {weight.device.type for weight in patcher.model.diffusion_model.parameters()}
        assert places == ({"pretend", "cpu"} if share else {"pretend"})
        assert all(torch.equal(problem.gradient(), kept) for _ in range(2))


@torch.inference_mode()
def drawn(trio: Any, rows: str, mask: torch.Tensor) -> torch.Tensor:
    model = apply_stack(trio.model, None, None, parse(rows), "beside", {"mask1": mask}).model
    latent, pair = torch.zeros(tiny.latent_shape(model)), [encode(trio.clip, text) for text in ("a red heart", "")]
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(model, noise, 3, 3.0, "euler", "simple", *pair, latent, seed=5)


def test_masks_hold_where_nothing_is_loaded(models, loras: Path, make_lora, monkeypatch) -> None:
    trio, manager, mask = models("sd15"), comfy.model_management, torch.zeros(64, 64)
    mask[:, :32] = 1
    for seed, name in enumerate(("one", "other")):
        make_lora("sd15", loras / f"{name}.safetensors", seed=seed, size=2.0)
    rows = "<lora:one:0.7:mask=1>\n<lora:other:0.8:mask=-1>"
    kept, whole = drawn(trio, rows, mask), drawn(trio, "<lora:one:0.7>", mask)
    manager.unload_all_models()
    monkeypatch.setattr(manager, "vram_state", manager.VRAMState.NO_VRAM)
    found = drawn(trio, rows, mask)
    assert not trio.model.loaded_size()
    assert torch.equal(found, kept) and not torch.equal(kept, whole)
