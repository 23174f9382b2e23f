"""LTX-2 on pictures: ComfyUI's model of clips with sound, given no sound. It has no row, and trains with neutral
figures."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from harness.problem import Problem
from harness.session import training_session
from tiny.families import GivenLatent, Tiny

UNET = dict(
    image_model="ltxav", num_layers=2, num_attention_heads=2, attention_head_dim=64, cross_attention_dim=128,
    caption_channels=64, audio_num_attention_heads=2, audio_attention_head_dim=32, audio_cross_attention_dim=64,
    connector_num_attention_heads=1, connector_attention_head_dim=64, connector_num_layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def ltx2() -> Any:
    return tiny.direct(Tiny("ltx2", "LTXAV", UNET, "ltxv", GivenLatent(128, 16), stock=False))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_finite_differences(ltx2: Any, checkpointing: bool) -> None:
    """Its blocks are given picture and sound in a tuple, which they change in place."""
    draw = torch.Generator().manual_seed(0)
    conditioning = [[[torch.randn(1, 5, 128, generator=draw), {}]] for _ in range(2)]
    with torch.inference_mode(), training_session(ltx2, checkpointing) as patcher:
        problem = Problem.of_model(patcher, conditioning)
        found = problem.gradient()
        assert found.norm() > 0
        for direction in problem.directions(found):
            slope = float(found.double() @ direction.double())
            assert abs(problem.slope(direction, slope) / slope - 1) < 1e-3
