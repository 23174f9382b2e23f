"""Neutral states are those of ComfyUI's own sampler, for models of every kind, within a budget of forwards."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import tiny
import torch
from harness.calls import encode
from harness.session import training_session
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.names import family_of
from lora_loom.nodes.bridge.quiet import states
from lora_loom.nodes.bridge.quiet.states import FORWARDS, Way, drawn, way_of
from torch import Tensor


class Watched(ComfyDenoiser):
    """Remembers what it was asked."""

    def __init__(self, patcher: Any):
        super().__init__(patcher)
        self.asked: list[Tensor] = []

    def denoised(self, x_t: Tensor, sigma: Tensor, conditions: list[Any]) -> Tensor:
        self.asked.append(x_t.clone())
        return super().denoised(x_t, sigma, conditions)


@pytest.mark.parametrize("family", ["sd15", "flux1", "wan_demo", "cascade_c"])
def test_a_prompt_is_drawn_as_comfyui_draws_it(models, family: str) -> None:
    trio = models(family)
    shape = tiny.latent_shape(trio.model)[1:]
    text = {prompt: encode(trio.clip, prompt) for prompt in ("a red heart", "")}
    with training_session(trio.model, False) as patcher:
        denoiser = Watched(patcher)
        conditions = [denoiser.condition(each, torch.zeros(shape)) for each in text.values()]
        assert list(drawn(denoiser, conditions[:1], conditions[1], Way(3, 3.0, shape))) == [0] * 6 + [1]
    found, seen = denoiser.asked[::2], []
    sigmas = states.schedule(denoiser, 3, torch.zeros(1))[:, 0].cpu()
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(states._SEED))
    comfy.sample.sample_custom(
        trio.model, noise, 3.0, comfy.samplers.ksampler("euler"), sigmas, *text.values(), torch.zeros(1, *shape),
        disable_pbar=True, callback=lambda _step, _denoised, x, _total: seen.append(x.clone()), seed=0,
    )  # fmt: skip
    for own, wanted in zip(found, seen, strict=True):
        torch.testing.assert_close(own.cpu(), wanted.cpu().float(), rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


def test_levels_of_all_prompts_cover_the_whole_range(models) -> None:
    denoiser = ComfyDenoiser(models("wan_demo").model)
    sigmas = states.schedule(denoiser, 3, torch.arange(48))
    assert sigmas.shape == (4, 48) and (sigmas[0] == 1).all() and (sigmas[-1] == 0).all()
    assert (sigmas[1:] < sigmas[:-1]).all()
    between = sigmas[1:3].flatten().sort().values
    assert between[0] < 0.02 and between[-1] > 0.65 and between.diff().max() < 0.02


@pytest.mark.parametrize("prompts", [1, 24, 48, 144])
def test_forwards_stay_within_the_budget(prompts: int) -> None:
    way = way_of(prompts, (4, 8, 8))
    assert 1 <= way.levels <= 12 and way.levels * prompts <= FORWARDS
    assert way.levels * prompts == FORWARDS or prompts < 24


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
