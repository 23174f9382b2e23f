"""CLIP vision stands for a VAE where pictures are encoded, and says that it cannot decode."""

from __future__ import annotations

import pytest
import torch
from harness.calls import relative_error, run_node
from harness.kandinsky import System
from lora_loom.nodes.bridge.model.encoding import compression
from lora_loom.nodes.bridge.model.encoding_cache import vae_identity
from lora_loom.nodes.clip_vision_as_vae import ClipVisionAsVae
from tiny import kandinsky

import nodes


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 48, 80, 3, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_a_pictures_latent_is_its_image_embedding(system: System) -> None:
    (vae,) = run_node(ClipVisionAsVae, clip_vision=system.clip_vision)
    (latent,) = nodes.VAEEncode().encode(vae, pictures())
    assert latent["samples"].shape == (2, kandinsky.EMBED, 1, 1) == (2, vae.latent_channels, 1, 1)
    seen = nodes.CLIPVisionEncode().encode(system.clip_vision, pictures(), "center")[0].image_embeds
    assert torch.equal(latent["samples"].flatten(1), seen) and relative_error(seen[:1], seen[1:]) > 1e-2
    assert compression(vae) == 1 and vae_identity(vae), "any size will do, and what is encoded may be kept"


def test_it_does_not_decode(system: System) -> None:
    (vae,) = run_node(ClipVisionAsVae, clip_vision=system.clip_vision)
    with pytest.raises(ValueError, match="cannot be decoded by CLIP vision; the decoder of Kandinsky 2.2"):
        nodes.VAEDecode().decode(vae, {"samples": torch.zeros(1, kandinsky.EMBED, 1, 1)})


@torch.inference_mode()
def test_movq_takes_pictures_there_and_back_at_any_size(system: System) -> None:
    (latent,) = nodes.VAEEncode().encode(system.vae, pictures())
    assert latent["samples"].shape == (2, 4, 6, 10) and compression(system.vae) == 8
    (back,) = nodes.VAEDecode().decode(system.vae, latent)
    assert back.shape == pictures().shape and 0 <= back.min() and back.max() <= 1
    (tiled,) = nodes.VAEDecodeTiled().decode(system.vae, latent, tile_size=64, overlap=0)
    assert tiled.shape == back.shape
