"""Training under --novram, where ComfyUI loads nothing and casts each layer into a buffer that it uses again."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from harness.calls import encode
from harness.problem import Problem
from harness.session import training_session
from harness.streams import gradients


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
