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
from lora_loom.nodes.bridge.model.names import family_of
from lora_loom.nodes.bridge.systems.stages import STAGES
from safetensors.torch import save_file
from torch import Tensor

from .families import ALIKE, DIFFUSERS_ALONE, FAMILIES, MORE, NOT_BY_COMFYUI, WITHOUT_DIFFUSERS, Tiny
from .text import make_clip
from .vae import GivenEmbeddings, make_prior_vae, make_vae
from .weights import seeded

__all__ = [
    "ALIKE",
    "DIFFUSERS_ALONE",
    "FAMILIES",
    "MORE",
    "NOT_BY_COMFYUI",
    "WITHOUT_DIFFUSERS",
    "Loaded",
    "Tiny",
    "direct",
    "latent_shape",
    "prior_of",
    "load",
    "make_clip",
    "write_model",
]


@dataclass(frozen=True)
class Loaded:
    """MODEL, CLIP and VAE of one family, fp32; stages that are drawn from an earlier one's have its encoder, too."""

    model: Any
    clip: Any
    vae: Any
    prior_vae: Any = None


_PRIORS = {"Stable_Cascade_B": make_prior_vae, "Kandinsky22Decoder": partial(GivenEmbeddings, 64)}


def load(name: str, folder: Path) -> Loaded:
    """Writes the family's files into `folder` and loads them as UNETLoader and VAELoader do."""
    row = FAMILIES[name]
    model = comfy.sd.load_diffusion_model(str(write_model(row, folder))) if row.stock else direct(row)
    make = _PRIORS.get(row.config, lambda: None)
    return Loaded(model, make_clip(row.text), make_vae(row.latent, folder), make())


def latent_shape(model: Any, count: int = 1, tall: int = 1) -> tuple[int, ...]:
    """The smallest latents that suit the tiny networks of this MODEL's family, `tall` times as high as wide."""
    space = model.model.latent_format
    if space.spacial_downscale_ratio == 64:
        return (count, space.latent_channels, 1, 1)  # the embedding of a picture
    side = 16 if space.spacial_downscale_ratio == 4 else 8  # the same 64 pixels
    return (count, space.latent_channels, *([1] if space.latent_dimensions == 3 else []), side * tall, side)


def prior_of(model: Any, draw: torch.Generator) -> dict[str, Tensor]:
    """What CONDITIONING for this MODEL must hold of an earlier stage, at random; nothing for most."""
    prior = family_of(model).prior
    if prior is None:
        return {}
    size = (3, 2) if prior.places else (1, 1)
    return {prior.name: torch.randn(1, prior.channels or 64, *size, generator=draw)}


def write_model(row: Tiny, folder: Path) -> Path:
    """The network's weights in the key layout of published files."""
    path = folder / f"{row.name}.safetensors"
    save_file({row.prefix + key: value for key, value in _weights(row).items()}, path)
    return path


def built(row: Tiny, device: str, dtype: torch.dtype = torch.float32, quantised: bool = False) -> Any:
    """ComfyUI's model of the family, with weights of that type, or with layers that take quantised ones."""
    own = {stage.config_class.__name__: stage.config_class for stage in STAGES}
    config = (own.get(row.config) or getattr(comfy.supported_models, row.config))(dict(row.unet))
    config.unet_config |= row.unet  # in whose place ComfyUI has sizes of its own for Ideogram 4
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
    weights = seeded(network.state_dict(), norm=row.norm)
    if row.config == "Kandinsky22Prior":
        weights["clip_std"] = torch.ones_like(weights["clip_std"])
    if row.config == "Wuerstchen2Prior":
        weights["out.1.weight"][row.unet["c_in"] :] *= 0.1  # what it divides by stays away from zero
    return weights


def direct(row: Tiny) -> comfy.model_patcher.ModelPatcher:
    """A MODEL without a file, for networks that no loader would accept."""
    return patcher_of(built(row, "cpu"), _weights(row))
