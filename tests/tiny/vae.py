"""VAEs with random weights for the latent spaces of the tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.ldm.wan.vae
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from .families import GivenLatent, Latent, WanLatent
from .weights import seeded


def make_vae(latent: Latent | WanLatent | GivenLatent, folder: Path) -> Any:
    """Through a file in `folder` and ComfyUI's own detection, where the latent space has a VAE that can be small."""
    if isinstance(latent, GivenLatent):
        return GivenLatents(latent)
    path = folder / f"vae_{latent.channels}.safetensors"
    save_file(_wan() if isinstance(latent, WanLatent) else _taesd(latent), path)
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


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


def _taesd(latent: Latent) -> dict[str, Tensor]:
    weights = seeded(comfy.taesd.taesd.TAESD(latent_channels=latent.channels).state_dict(), gain=1.2)
    return weights | {"vae_scale": torch.tensor(latent.scale), "vae_shift": torch.tensor(latent.shift)}


def _wan(width: int = 4) -> dict[str, Tensor]:
    vae = comfy.ldm.wan.vae.WanVAE(dim=width, z_dim=16, temperal_downsample=[False, True, True])
    return seeded(vae.state_dict())
