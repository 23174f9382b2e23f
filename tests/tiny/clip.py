"""Tiny CLIP models in transformers' own classes, the text encoder and the vision model of systems with two stages."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from .weights import seeded

_END = 49407


def text(width: int = 64) -> CLIPTextModelWithProjection:
    """Writes files as published: `text_model.*` and `text_projection.weight`."""
    sizes = dict(hidden_size=width, projection_dim=width, intermediate_size=2 * width, num_hidden_layers=2)
    tokens = dict(vocab_size=_END + 1, bos_token_id=_END - 1, eos_token_id=_END, pad_token_id=_END)
    heads = width // 64
    return _filled(
        CLIPTextModelWithProjection(CLIPTextConfig(hidden_act="gelu", num_attention_heads=heads, **sizes, **tokens))
    )


def vision(width: int = 64) -> CLIPVisionModelWithProjection:
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, patch_size=56, projection_dim=width)
    return _filled(CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_act="gelu", num_attention_heads=1, **sizes)))


def in_comfyui(network: CLIPVisionModelWithProjection) -> Any:
    """A CLIP_VISION of these weights; ComfyUI's loader tells the real ones by their sizes."""
    loaded = comfy.clip_vision.ClipVisionModel(network.config.to_dict())
    loaded.load_sd(network.state_dict())
    return loaded


def _filled(network: Any) -> Any:
    weights = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    network.load_state_dict(seeded(weights), strict=False)
    return network.eval().requires_grad_(False)
