"""Neutral states are those of ComfyUI's own sampler, for models of every kind, within a budget of forwards."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from harness.calls import encode
from harness.session import training_session
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.names import family_of
from lora_loom.nodes.bridge.quiet import states
from lora_loom.nodes.bridge.quiet.states import FORWARDS, Way, drawn, way_of
from torch import Tensor

import tiny


class Watched(ComfyDenoiser):
    """Remembers what it was asked."""

    def __init__(self, patcher: Any):
        super().__init__(patcher)
        self.asked: list[Tensor] = []

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
        self.asked.append(x_t.clone())
        return super().denoised(x_t, sigma, conditions)


@pytest.mark.parametrize("family", ["sd15", "flux1", "wan_demo", "cascade_c"])
def test_a_prompt_is_drawn_as_ksampler_draws_it(models, family: str) -> None:
    trio = models(family)
    shape = tiny.latent_shape(trio.model)[1:]
    text = {prompt: encode(trio.clip, prompt) for prompt in ("a red heart", "")}
    with training_session(trio.model, False) as patcher:
        denoiser = Watched(patcher)
        conditions = [denoiser.condition(each, torch.zeros(shape)) for each in text.values()]
        assert list(drawn(denoiser, conditions[:1], conditions[1], Way(3, 3.0, shape))) == [0] * 6 + [1]
    found = denoiser.asked[::2]

    seen = []
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(states._SEED))
    comfy.sample.sample(
        trio.model, noise, 3, 3.0, "euler", "simple", *text.values(), torch.zeros(1, *shape), disable_pbar=True,
        callback=lambda _step, _denoised, x, _total: seen.append(x.clone()), seed=0,
    )  # fmt: skip
    for own, wanted in zip(found, seen, strict=True):
        torch.testing.assert_close(own.cpu(), wanted.cpu().float(), rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("prompts", [1, 24, 48, 144])
def test_forwards_stay_within_the_budget(models, prompts: str) -> None:
    way = way_of(models("sd15").model, prompts, (4, 8, 8))
    assert way.cfg > 1 and 1 <= way.levels <= 8 and 2 * way.levels * prompts <= FORWARDS
    distilled = way_of(models("flux1").model, prompts, (16, 8, 8))
    assert distilled.cfg == 1 and distilled.levels * prompts <= FORWARDS and distilled.levels >= way.levels


def test_texts_of_different_lengths_share_no_forward(models) -> None:
    trio = models("wan_demo")
    assert family_of(trio.model).captions, "they could"
    prompts = ("a red circle", "a red circle on a blue background", "a blue circle", "")
    shape = tiny.latent_shape(trio.model)[1:]
    with training_session(trio.model, False) as patcher:
        denoiser = Watched(patcher)
        conditions = [denoiser.condition(encode(trio.clip, each), torch.zeros(shape)) for each in prompts]
        lengths = {states._length(each) for each in conditions}
        assert list(drawn(denoiser, conditions, conditions[-1], Way(1, 1.0, shape)))[-1] == 4
    assert len(denoiser.asked) == len(lengths)
