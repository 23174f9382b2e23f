"""VAEs with random weights for the latent spaces of the tiny models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.ldm.cascade.stage_a
import comfy.ldm.cascade.stage_c_coder
import comfy.ldm.wan.vae
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from .families import GivenEmbedding, GivenLatent, Latent, StageALatent, WanLatent
from .weights import seeded


def make_vae(latent: Latent | WanLatent | GivenLatent | GivenEmbedding | StageALatent, folder: Path) -> Any:
    """Through a file in `folder` and ComfyUI's own detection, where the latent space has a VAE that can be small."""
    if isinstance(latent, GivenLatent):
        return GivenLatents(latent)
    if isinstance(latent, GivenEmbedding):
        return GivenEmbeddings(latent.channels)
    if isinstance(latent, StageALatent):
        return _stage_a()
    path = folder / f"vae_{latent.channels}.safetensors"
    save_file(_wan() if isinstance(latent, WanLatent) else _taesd(latent), path)
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def make_prior_vae() -> Any:
    """Stable Cascade's stage C encoder, EfficientNetV2-s at its real size; its weights tell pictures apart.

    The file has the encoder alone, as published; ComfyUI logs that the previewer is missing.
    """
    encoder = comfy.ldm.cascade.stage_c_coder.EfficientNetEncoder()
    weights = seeded(encoder.state_dict(), gain=1.2)
    centred = {name: value.zero_() for name, value in weights.items() if name.endswith("running_mean")}
    return comfy.sd.VAE(sd=weights | centred | {"mapper.1.running_var": torch.full((16,), 0.002)})


def _stage_a() -> Any:
    """Its size is no part of its file."""
    small = partial(comfy.ldm.cascade.stage_a.StageA, c_hidden=16, bottleneck_blocks=1, codebook_size=4)
    with patch.object(comfy.sd, "StageA", small):
        return comfy.sd.VAE(sd=seeded(small().state_dict()))


class GivenLatents:
    """Stands in for a VAE: a fixed random map of each patch of pixels to a latent."""

    def __init__(self, latent: GivenLatent) -> None:
        self.channels, self.factor = latent.channels, latent.factor

    def spacial_compression_encode(self) -> int:
        return self.factor

    def encode(self, pixels: Tensor) -> Tensor:
        patches = rearrange(pixels, "b (h p) (w q) c -> b h w (p q c)", p=self.factor, q=self.factor)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(patches.shape[-1], self.channels, generator=generator) / patches.shape[-1] ** 0.5
        return rearrange(patches @ weight, "b h w c -> b c h w")


class GivenEmbeddings:
    """Stands in for CLIP vision as a VAE: a fixed random map of a picture's 16 mean colours to an embedding."""

    def __init__(self, width: int) -> None:
        self.latent_channels = width
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(48, width, generator=generator) / 2

    def spacial_compression_encode(self) -> int:
        return 1

    def encode(self, pixels: Tensor) -> Tensor:
        seen = functional.adaptive_avg_pool2d(pixels.movedim(-1, 1), 4).flatten(1)
        return (seen @ self.weight)[..., None, None]


def _taesd(latent: Latent) -> dict[str, Tensor]:
    weights = seeded(comfy.taesd.taesd.TAESD(latent_channels=latent.channels).state_dict(), gain=1.2)
    return weights | {"vae_scale": torch.tensor(latent.scale), "vae_shift": torch.tensor(latent.shift)}


def _wan(width: int = 4) -> dict[str, Tensor]:
    vae = comfy.ldm.wan.vae.WanVAE(dim=width, z_dim=16, temperal_downsample=[False, True, True])
    return seeded(vae.state_dict())
