"""Tiny, seeded models of the real architectures, as files that ComfyUI's own loaders accept. Nothing is downloaded.

A further family is a row in `families.py` (and, with a new text encoder, one in `text.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.ldm.anima.model as anima
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from safetensors.torch import save_file
from torch import Tensor

from .families import FAMILIES, MORE, WITHOUT_DIFFUSERS, Tiny
from .text import make_clip
from .vae import make_prior_vae, make_vae
from .weights import seeded

__all__ = [
    "FAMILIES",
    "MORE",
    "WITHOUT_DIFFUSERS",
    "Loaded",
    "Tiny",
    "latent_shape",
    "load",
    "make_clip",
    "write_model",
]


@dataclass(frozen=True)
class Loaded:
    """MODEL, CLIP and VAE of one family, fp32; Stable Cascade B has the encoder of stage C, too."""

    model: Any
    clip: Any
    vae: Any
    prior_vae: Any = None


def load(name: str, folder: Path) -> Loaded:
    """Writes the family's files into `folder` and loads them as UNETLoader and VAELoader do."""
    row = FAMILIES[name]
    model = comfy.sd.load_diffusion_model(str(write_model(row, folder))) if row.stock else _direct(row)
    prior_vae = make_prior_vae() if row.config == "Stable_Cascade_B" else None
    return Loaded(model, make_clip(row.text), make_vae(row.latent, folder), prior_vae)


def latent_shape(model: Any, count: int = 1, tall: int = 1) -> tuple[int, ...]:
    """The smallest latents that suit the tiny networks of this MODEL's family, `tall` times as high as wide."""
    space = model.model.latent_format
    side = 16 if space.spacial_downscale_ratio == 4 else 8  # the same 64 pixels
    return (count, space.latent_channels, *([1] if space.latent_dimensions == 3 else []), side * tall, side)


def write_model(row: Tiny, folder: Path) -> Path:
    """The network's weights in the key layout of published files."""
    path = folder / f"{row.name}.safetensors"
    save_file({row.prefix + key: value for key, value in _weights(row).items()}, path)
    return path


def built(row: Tiny, device: str, dtype: torch.dtype = torch.float32, quantised: bool = False) -> Any:
    """ComfyUI's model of the family, with weights of that type, or with layers that take quantised ones."""
    config = getattr(comfy.supported_models, row.config)(dict(row.unet))
    config.quant_config = {"mixed_ops": True} if quantised else None
    home, supported = comfy.model_management.get_torch_device(), config.supported_inference_dtypes
    cast = comfy.model_management.unet_manual_cast(None if quantised else dtype, home, supported)
    config.set_inference_dtype(dtype, cast)
    adapter = partial(anima.LLMAdapter, source_dim=64, target_dim=64, model_dim=64, num_layers=1, num_heads=2)
    with patch.object(anima, "LLMAdapter", adapter):  # its size is no part of the configuration
        return config.get_model(dict.fromkeys(row.marks, torch.ones(())), "", device=torch.device(device))


def patcher_of(model: Any, weights: dict[str, Tensor] | None = None) -> comfy.model_patcher.ModelPatcher:
    """A MODEL, with `weights` loaded as its loader loads them."""
    if weights is not None:
        model.load_model_weights(weights, "")
    device, store = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=store)


def _weights(row: Tiny) -> dict[str, Tensor]:
    network = built(row, "meta").diffusion_model
    return seeded(network.state_dict(), norm=row.norm)


def _direct(row: Tiny) -> comfy.model_patcher.ModelPatcher:
    return patcher_of(built(row, "cpu"), _weights(row))
