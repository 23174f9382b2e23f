"""Wuerstchen's prior has the weights of diffusers' network, and gives what that gives."""

from __future__ import annotations

from typing import Any

import comfy.ops
import pytest
import torch
from comfy.ldm.cascade.stage_c import StageC
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior as Judge
from harness.calls import relative_error
from harness.parity import STORED, at_real_size, made, shapes_of, stored_as, theirs
from lora_loom.nodes.bridge.networks.wuerstchen_decoder import WuerstchenDecoder
from lora_loom.nodes.bridge.networks.wuerstchen_prior import WuerstchenPrior, config
from tiny.wuerstchen import DECODER, PRIOR, prior_weights
from torch import Tensor

REAL = {"c_in": 16, "c": 1536, "c_cond": 1280, "c_r": 64, "depth": 32}


def in_diffusers(c: int, **sizes: int) -> dict[str, int]:
    return {"c": c, "nhead": c // 64, **sizes}


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = {"x": (2, 16, 3, 5), "context": (2, 7, 64)}
    given = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in drawn.items()}
    return given | {"timesteps": torch.tensor([0.9, 0.2])}


def judged(network: Any, x: Tensor, context: Tensor, timesteps: Tensor) -> Tensor:
    return network(x, timesteps, context)


def test_real_size() -> None:
    right = at_real_size(Judge, **in_diffusers(**REAL))
    assert shapes_of(made(WuerstchenPrior, REAL)) == right and len(right) == 648
    assert shapes_of(made(WuerstchenPrior, {})) == right, "the sizes of the published file are the defaults"
    assert config(right) == REAL


def test_output_is_that_of_diffusers() -> None:
    weights, given = prior_weights(), inputs()
    right = judged(theirs(Judge, weights, **in_diffusers(**PRIOR)), **given)
    assert relative_error(made(WuerstchenPrior, PRIOR, weights)(**given), right) < 2e-6


def test_every_input_matters() -> None:
    network, given = made(WuerstchenPrior, PRIOR, prior_weights()), inputs()
    right = network(**given)
    for name, value in given.items():
        other = network(**given | {name: value.flip(0)})
        assert relative_error(other, right) > 1e-3, name


def test_sizes_are_read_off_the_shapes() -> None:
    shapes = shapes_of(made(WuerstchenPrior, PRIOR))
    assert config(shapes) == PRIOR
    assert config({name: shape for name, shape in shapes.items() if name != "cond_mapper.0.weight"}) is None
    assert config({}) is None


def test_no_like_network_is_taken_for_it() -> None:
    cascade = StageC(device="meta", operations=comfy.ops.disable_weight_init)
    assert config(shapes_of(cascade)) is None
    assert config(shapes_of(made(WuerstchenDecoder, DECODER))) is None


@pytest.mark.parametrize("dtype", STORED.values(), ids=STORED)
def test_weights_are_cast_where_they_are_used(dtype: torch.dtype) -> None:
    stored, right = stored_as(WuerstchenPrior, PRIOR, prior_weights(), dtype)
    given = inputs()
    assert torch.equal(stored(**given), right(**given))
    half = {name: value if name == "timesteps" else value.bfloat16() for name, value in given.items()}
    out = stored(**half)
    assert out.dtype == torch.bfloat16 and relative_error(out.float(), right(**given)) < 0.03


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_it_computes_in_either_half(dtype: torch.dtype) -> None:
    weights = prior_weights()
    right = made(WuerstchenPrior, PRIOR, weights)(**inputs())
    out = made(WuerstchenPrior, PRIOR, weights, dtype)(**inputs(dtype))
    assert out.dtype == dtype and relative_error(out.float(), right) < 0.03


def test_gradients_reach_weights_and_inputs() -> None:
    network = made(WuerstchenPrior, PRIOR, prior_weights()).requires_grad_()
    given = {name: value.requires_grad_(name != "timesteps") for name, value in inputs().items()}
    network(**given).square().mean().backward()
    reached = [*network.parameters(), *(value for value in given.values() if value.requires_grad)]
    assert all(each.grad is not None and each.grad.isfinite().all() and each.grad.any() for each in reached)


def test_attention_is_that_of_the_options() -> None:
    network, seen = made(WuerstchenPrior, PRIOR, prior_weights()), []

    def watched(attend: Any, *tensors: Any, **choices: Any) -> Tensor:
        seen.append(choices["transformer_options"])
        return attend(*tensors, **choices)

    options = {"optimized_attention_override": watched}
    out = network(**inputs(), transformer_options=options)
    assert torch.equal(out, network(**inputs())) and len(seen) == 2
