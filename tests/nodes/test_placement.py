"""What a forward makes lies where it runs: on a device that is not here, where CPU tensors do not mix with its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from harness.calls import encode
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.nodes.bridge import captions
from lora_loom.nodes.bridge.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.rehearsal import Job, _condition, _without_memory
from lora_loom.nodes.bridge.session import trainable
from torch._subclasses.fake_tensor import FakeTensorMode

CUDA = torch.device("cuda", 0)
TEXTS = ("red", "many words, " * 40)
JOINING = ["sd15", "qwen_image", "chroma", "lumina2", "zimage", "anima"]


@pytest.mark.parametrize("family", JOINING)
def test_captions_of_different_length_meet_no_mask_in_ram(models, family: str, monkeypatch) -> None:
    trio = models(family)
    shape = list(tiny.latent_shape(trio.model))
    shape[-2:] = [16, 16]  # a picture that Z-Image need not fill up
    kept = []
    joined = captions.join
    monkeypatch.setattr(captions, "join", lambda *args: kept.append(joined(*args)) or kept[-1])
    with trainable(trio.model) as patcher, torch.no_grad():
        home, patcher.load_device = patcher.load_device, CUDA
        try:
            out = forward(patcher, trio.clip, shape)
        finally:
            patcher.load_device = home
    assert out.shape == (2, *shape[1:]) and out.device == CUDA
    (one,) = kept
    assert all(mask.device == CUDA for mask in (one.seen, one.blank) if mask is not None)
    if family == "anima":  # whose adapter makes texts of one length
        return
    assert one.seen is not None and one._mask(3) is one._mask(3), "made once, whichever attention asks"


def forward(patcher: Any, clip: Any, shape: list[int]) -> torch.Tensor:
    job = Job(LoraConfig(), TrainConfig(), tuple(shape[1:]), encode(clip, TEXTS[0], guidance=1.0), 64)
    other = replace(job, conditioning=encode(clip, TEXTS[1], guidance=1.0))
    with FakeTensorMode(allow_non_fake_inputs=True), _without_memory(patcher.model, (), CUDA):
        denoiser = ComfyDenoiser(patcher)
        conditions = [_condition(denoiser, each) for each in (job, other)]
        x = torch.zeros(2, *shape[1:], device=CUDA)
        return denoiser.denoised(x, torch.full((2,), 0.5, device=CUDA), conditions)
