"""The text encoders of diffusers' pipelines: transformers' own classes with a tiny ComfyUI CLIP's weights."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy.sdxl_clip import SDXLClipG
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


class Text:
    """The text encoders of SD 1.5 or SDXL, called as diffusers' pipelines call them."""

    def __init__(self, clip: Any) -> None:
        comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)  # off go a clone's patches
        self.clip = clip
        parts = dict(clip.cond_stage_model.named_children())
        self.networks = {
            name: _text_twin(parts[name]).requires_grad_(False) for name in ("clip_l", "clip_g") if name in parts
        }

    @torch.no_grad()
    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        """Return what the UNet is given, and the pooled text of the last encoder."""
        tokens = self.clip.tokenize(text)
        outputs = [
            network(torch.tensor([[token for token, _ in tokens[name[-1]][0]]]), output_hidden_states=True)
            for name, network in self.networks.items()
        ]
        if len(outputs) == 1:
            return outputs[0].last_hidden_state, outputs[0].pooler_output
        return torch.cat([out.hidden_states[-2] for out in outputs], -1), outputs[-1].text_embeds


def _text_twin(encoder: Any) -> CLIPTextModel | CLIPTextModelWithProjection:
    weights, projected = encoder.transformer.state_dict(), isinstance(encoder, SDXLClipG)
    width = weights["text_model.final_layer_norm.weight"].shape[0]
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=encoder.num_layers, num_attention_heads=2, projection_dim=width,
        hidden_act="gelu" if projected else "quick_gelu", eos_token_id=49407,
    )  # fmt: skip
    network = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    prefix = "" if hasattr(network, "text_model") else "text_model."  # which newer releases of transformers drop
    names = {name: prefix + name for name in network.state_dict()}
    network.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    return network
