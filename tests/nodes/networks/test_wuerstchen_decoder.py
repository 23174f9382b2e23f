"""Wuerstchen's decoder has the weights of diffusers' network, and gives what that gives."""

from __future__ import annotations

from typing import Any

import comfy.ops
import pytest
import torch
from comfy.ldm.cascade.stage_b import StageB
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt
from harness.calls import relative_error
from harness.parity import STORED, at_real_size, made, shapes_of, stored_as, theirs
from lora_loom.nodes.bridge.networks.wuerstchen_decoder import WuerstchenDecoder, config
from lora_loom.nodes.bridge.networks.wuerstchen_prior import WuerstchenPrior
from tiny.wuerstchen import DECODER, PRIOR, decoder_weights
from torch import Tensor

REAL = {
    "c_in": 4, "c_out": 4, "c_r": 64, "c_cond": 1024, "c_hidden": [320, 640, 1280, 1280], "blocks": [4, 4, 14, 4],
    "level_config": ["CT", "CTA", "CTA", "CTA"], "inject_effnet": [False, True, True, True], "effnet_embd": 16,
    "clip_embd": 1024, "kernel_size": 3,
}  # fmt: skip


def in_diffusers(c_hidden: list[int], level_config: list[str], **sizes: Any) -> dict[str, Any]:
    heads = [width // 64 if "A" in order else -1 for width, order in zip(c_hidden, level_config, strict=True)]
    return {"c_hidden": c_hidden, "nhead": heads, "level_config": level_config, **sizes}


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = {"x": (2, 4, 16, 24), "context": (2, 7, 64), "effnet": (2, 16, 2, 3)}
    given = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in drawn.items()}
    return given | {"timesteps": torch.tensor([0.9, 0.2])}


def judged(network: Any, x: Tensor, context: Tensor, effnet: Tensor, timesteps: Tensor) -> Tensor:
    return network(x, timesteps, effnet, clip=context)


def test_real_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WuerstchenDiffNeXt, "_init_weights", lambda *_: None)  # ten seconds, on the meta device, too
    right = at_real_size(WuerstchenDiffNeXt, **in_diffusers(**REAL))
    assert shapes_of(made(WuerstchenDecoder, REAL)) == right and len(right) == 990
    assert shapes_of(made(WuerstchenDecoder, {})) == right, "the sizes of the published file are the defaults"
    assert config(right) == REAL


def test_output_is_that_of_diffusers() -> None:
    weights, given = decoder_weights(), inputs()
    right = judged(theirs(WuerstchenDiffNeXt, weights, **in_diffusers(**DECODER)), **given)
    assert relative_error(made(WuerstchenDecoder, DECODER, weights)(**given), right) < 2e-6


def test_every_input_matters() -> None:
    network, given = made(WuerstchenDecoder, DECODER, decoder_weights()), inputs()
    right = network(**given)
    for name, value in given.items():
        other = network(**given | {name: value.flip(0)})
        assert relative_error(other, right) > 1e-3, name


def test_a_latent_that_cannot_be_halved_is_refused_with_the_sizes() -> None:
    network = made(WuerstchenDecoder, DECODER, decoder_weights())
    with pytest.raises(ValueError, match="multiples of 8, 32 pixels of a picture, but this latent is 16 x 12"):
        network(**inputs() | {"x": torch.zeros(2, 4, 12, 16)})


def test_sizes_are_read_off_the_shapes() -> None:
    shapes = shapes_of(made(WuerstchenDecoder, DECODER))
    assert config(shapes) == DECODER
    assert config({name: shape for name, shape in shapes.items() if name != "clip_mapper.weight"}) is None
    assert config({}) is None


def test_no_like_network_is_taken_for_it() -> None:
    cascade = StageB(device="meta", operations=comfy.ops.disable_weight_init)
    assert config(shapes_of(cascade)) is None
    assert config(shapes_of(made(WuerstchenPrior, PRIOR))) is None


@pytest.mark.parametrize("dtype", STORED.values(), ids=STORED)
def test_weights_are_cast_where_they_are_used(dtype: torch.dtype) -> None:
    stored, right = stored_as(WuerstchenDecoder, DECODER, decoder_weights(), dtype)
    given = inputs()
    assert torch.equal(stored(**given), right(**given))
    half = {name: value if name == "timesteps" else value.bfloat16() for name, value in given.items()}
    out = stored(**half)
    assert out.dtype == torch.bfloat16 and relative_error(out.float(), right(**given)) < 0.03


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_it_computes_in_either_half(dtype: torch.dtype) -> None:
    weights = decoder_weights()
    right = made(WuerstchenDecoder, DECODER, weights)(**inputs())
    out = made(WuerstchenDecoder, DECODER, weights, dtype)(**inputs(dtype))
    assert out.dtype == dtype and relative_error(out.float(), right) < 0.03


def test_gradients_reach_weights_and_inputs() -> None:
    network = made(WuerstchenDecoder, DECODER, decoder_weights()).requires_grad_()
    given = {name: value.requires_grad_(name != "timesteps") for name, value in inputs().items()}
    network(**given).square().mean().backward()
    reached = [*network.parameters(), *(value for value in given.values() if value.requires_grad)]
    assert all(each.grad is not None and each.grad.isfinite().all() and each.grad.any() for each in reached)


def test_attention_is_that_of_the_options() -> None:
    network, seen = made(WuerstchenDecoder, DECODER, decoder_weights()), []

    def watched(attend: Any, *tensors: Any, **choices: Any) -> Tensor:
        seen.append(choices["transformer_options"])
        return attend(*tensors, **choices)

    options = {"optimized_attention_override": watched}
    out = network(**inputs(), transformer_options=options)
    assert torch.equal(out, network(**inputs())) and len(seen) == 6
