"""Wuerstchen's VQGAN makes the latents and the pictures that diffusers' does."""

from __future__ import annotations

import pytest
import torch
from comfy.ldm.cascade.stage_a import StageA
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from harness.calls import relative_error
from harness.parity import shapes_of
from lora_loom.nodes.bridge.networks.wuerstchen_vqgan import SCALE, WuerstchenVqgan, config
from tiny import wuerstchen

PUBLISHED = {"levels": 2, "bottleneck_blocks": 12, "c_hidden": 384, "c_latent": 4, "codebook_size": 8192}
SIZES = {"published": PUBLISHED, "tiny": wuerstchen.VQGAN}
THEIRS = {"c_hidden": "embed_dim", "c_latent": "latent_channels", "codebook_size": "num_vq_embeddings"}


def reference(size: str) -> PaellaVQModel:
    return PaellaVQModel(**{THEIRS.get(name, name): value for name, value in SIZES[size].items()}).eval()


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_are_diffusers_and_tell_its_configuration(size: str) -> None:
    with torch.device("meta"):
        theirs = reference(size)
    ours = shapes_of(WuerstchenVqgan(**SIZES[size], device="meta"))
    assert ours == shapes_of(theirs) and (size == "tiny" or len(ours) == 122)
    assert config(ours) == SIZES[size] and theirs.config.scale_factor == SCALE


def test_it_computes_what_diffusers_does() -> None:
    theirs, ours = reference("tiny"), WuerstchenVqgan(**wuerstchen.VQGAN).eval()
    for network in (theirs, ours):
        network.load_state_dict(wuerstchen.vqgan_weights())
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latent = theirs.encode(picture).latents
        assert relative_error(ours.encode(picture * 2 - 1), latent) < 2e-6
        assert relative_error(ours.decode(latent) / 2 + 0.5, theirs.decode(latent).sample) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_computing_in_a_narrower_type(dtype: torch.dtype) -> None:
    narrow, wide = WuerstchenVqgan(**wuerstchen.VQGAN, dtype=dtype).eval(), WuerstchenVqgan(**wuerstchen.VQGAN).eval()
    for network in (narrow, wide):
        network.load_state_dict(wuerstchen.vqgan_weights())
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = narrow.decode(latent.to(dtype)), wide.decode(latent)
        assert found.dtype == dtype and relative_error(found.float(), wanted) < 0.03
        assert relative_error(narrow.encode(wanted.to(dtype)).float(), wide.encode(wanted)) < 0.03


def test_no_like_network_is_taken_for_it() -> None:
    with torch.device("meta"):
        cascade = shapes_of(StageA())
    assert config({}) is None and config(cascade) is None
