"""ComfyUI's stage A, with Wuerstchen's VQGAN in it, makes the latents and the pictures that diffusers' does."""

from __future__ import annotations

import comfy.sd
import pytest
import torch
from comfy.ldm.cascade.stage_a import StageA
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from harness.calls import relative_error
from harness.networks import shapes
from lora_loom.nodes.bridge.networks.wuerstchen_vqgan import SCALE, config, stage_a
from tiny import wuerstchen

PUBLISHED = {"levels": 2, "bottleneck_blocks": 12, "c_hidden": 384, "c_latent": 4, "codebook_size": 8192}
SIZES = {"published": PUBLISHED, "tiny": wuerstchen.VQGAN}
THEIRS = {"c_hidden": "embed_dim", "c_latent": "latent_channels", "codebook_size": "num_vq_embeddings"}


def reference(size: str) -> PaellaVQModel:
    return PaellaVQModel(**{THEIRS.get(name, name): value for name, value in SIZES[size].items()}).eval()


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_are_diffusers(size: str) -> None:
    with torch.device("meta"):
        ours, theirs = StageA(**SIZES[size]), reference(size)
    assert shapes(ours) == shapes(stage_a(theirs.state_dict()))
    assert theirs.config.scale_factor == SCALE


def test_it_computes_what_diffusers_does() -> None:
    theirs, ours = reference("tiny"), StageA(**wuerstchen.VQGAN).eval()
    weights = wuerstchen.vqgan_weights()
    theirs.load_state_dict(weights)
    ours.load_state_dict(stage_a(weights))
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latent = theirs.encode(picture).latents
        assert relative_error(ours.encode(picture), latent) < 2e-6
        assert relative_error(ours.decode(latent), theirs.decode(latent).sample) < 2e-6


@pytest.mark.parametrize("size", SIZES)
def test_the_configuration_is_read_from_the_shapes_in_either_spelling(size: str) -> None:
    with torch.device("meta"):
        network, theirs = StageA(**SIZES[size]), reference(size)
    assert config(shapes(network)) == config(shapes(theirs)) == SIZES[size]


def test_no_other_network_is_taken_for_it() -> None:
    assert config({}) is None and config(shapes(wuerstchen.decoder_weights())) is None


def test_comfyui_makes_a_vae_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy.sd, "StageA", lambda: StageA(**wuerstchen.VQGAN))  # its size is no part of its file
    vae = comfy.sd.VAE(sd=stage_a(wuerstchen.vqgan_weights()))
    theirs = reference("tiny")
    theirs.load_state_dict(wuerstchen.vqgan_weights())
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs.decode(latent).sample.movedim(1, -1)
    assert relative_error(vae.decode(latent), wanted) < 2e-6
