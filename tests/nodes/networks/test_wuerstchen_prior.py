"""Wuerstchen's prior computes what diffusers' does, in every type that ComfyUI loads, and is told from its weights."""

from __future__ import annotations

import pytest
import torch
from comfy.ldm.cascade.stage_c import StageC
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior as Reference
from harness.calls import relative_error
from harness.networks import CAST, PLAIN, shapes, stored
from lora_loom.nodes.bridge.networks.wuerstchen_prior import WuerstchenPrior, config
from tiny import wuerstchen
from torch import Tensor

PUBLISHED = {"c_in": 16, "c": 1536, "c_cond": 1280, "c_r": 64, "depth": 32, "nhead": 24}
SIZES = {"published": PUBLISHED, "tiny": wuerstchen.PRIOR}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return wuerstchen.prior_weights()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    latent, text = torch.randn(2, 16, 3, 5, generator=draw), torch.randn(2, 7, 64, generator=draw)
    return {"x": latent, "timesteps": torch.tensor([0.9, 0.2]), "context": text}


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> WuerstchenPrior:
    return stored(WuerstchenPrior, wuerstchen.PRIOR, weights, torch.float32)


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_are_diffusers(size: str) -> None:
    with torch.device("meta"):
        theirs = shapes(Reference(**SIZES[size]))
    ours = shapes(WuerstchenPrior(**SIZES[size], device="meta", operations=PLAIN))
    assert ours == theirs and (size == "tiny" or len(ours) == 648)


def test_it_computes_what_diffusers_does(network, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    theirs = Reference(**wuerstchen.PRIOR).eval()
    theirs.load_state_dict(weights)
    with torch.no_grad():
        wanted = theirs(inputs["x"], inputs["timesteps"], inputs["context"])
        assert relative_error(network(**inputs), wanted) < 2e-6


@pytest.mark.parametrize("dtype", CAST, ids=str)
def test_weights_of_a_narrower_type(network, weights, inputs: dict[str, Tensor], dtype: torch.dtype) -> None:
    """They are cast at use, so that the result is theirs in fp32."""
    narrow = {name: weight.to(dtype) for name, weight in weights.items()}
    wide = stored(
        WuerstchenPrior, wuerstchen.PRIOR, {name: each.float() for name, each in narrow.items()}, torch.float32
    )
    with torch.no_grad():
        found = stored(WuerstchenPrior, wuerstchen.PRIOR, narrow, dtype)(**inputs)
        assert found.dtype == torch.float32 and relative_error(found, wide(**inputs)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_computing_in_a_narrower_type(network, weights, inputs: dict[str, Tensor], dtype: torch.dtype) -> None:
    narrow = stored(WuerstchenPrior, wuerstchen.PRIOR, {name: each.to(dtype) for name, each in weights.items()}, dtype)
    given = {name: value if name == "timesteps" else value.to(dtype) for name, value in inputs.items()}
    with torch.no_grad():
        found, wanted = narrow(**given), network(**inputs)
    assert found.dtype == dtype and relative_error(found.float(), wanted) < 0.02


def test_gradients_reach_everything_that_it_is_given(network, inputs: dict[str, Tensor]) -> None:
    given = {name: value.clone().requires_grad_(name != "timesteps") for name, value in inputs.items()}
    network(**given).square().mean().backward()
    assert all(given[name].grad.norm() > 0 for name in ("x", "context"))
    assert all(weight.grad.isfinite().all() and weight.grad.norm() > 0 for weight in network.parameters())


def test_it_attends_by_the_attention_of_its_options(network, inputs: dict[str, Tensor]) -> None:
    def nothing(attend, query, *rest, **options) -> Tensor:
        return torch.zeros_like(query)

    with torch.no_grad():
        other = network(**inputs, transformer_options={"optimized_attention_override": nothing})
        assert relative_error(other, network(**inputs)) > 0.01


@pytest.mark.parametrize("size", SIZES)
def test_the_configuration_is_read_from_the_shapes(size: str) -> None:
    made = WuerstchenPrior(**SIZES[size], device="meta", operations=PLAIN)
    assert config(shapes(made)) == SIZES[size]


def test_no_other_network_is_taken_for_it() -> None:
    cascade = shapes(StageC(device="meta", operations=PLAIN))
    assert config(cascade) is None and config(shapes(wuerstchen.decoder_weights())) is None
    assert config({}) is None
