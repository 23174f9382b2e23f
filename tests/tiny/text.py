"""Tiny text encoders: ComfyUI's classes and tokenizers at small widths, through its `<name>_model_config` override."""

from __future__ import annotations

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.flux as flux
import comfy.text_encoders.sd3_clip as sd3_clip
import torch
from comfy import sd1_clip, sdxl_clip

from .weights import seeded


def _clip_l(width: int, layers: int) -> dict[str, int]:
    return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=width)


def _t5(width: int) -> dict[str, int]:
    return dict(d_model=width, d_ff=2 * width, d_kv=16, num_heads=2, num_layers=1)


def _llm(width: int, layers: int) -> dict[str, int]:
    return dict(
        hidden_size=width, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip


KINDS = {
    "sd15": (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer, {"clip_l_model_config": _clip_l(768, 1)}),
    "sdxl": (  # the last layer but one is read
        sdxl_clip.SDXLClipModel,
        sdxl_clip.SDXLTokenizer,
        {"clip_l_model_config": _clip_l(32, 3), "clip_g_model_config": _clip_l(64, 3)},
    ),
    "sd3": (  # without T5; padded to its width
        sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=False),
        sd3_clip.SD3Tokenizer,
        {"clip_l_model_config": _clip_l(64, 3), "clip_g_model_config": _clip_l(64, 3)},
    ),
    "flux": (
        flux.flux_clip(),
        flux.FluxTokenizer,
        {"clip_l_model_config": _clip_l(64, 1), "t5xxl_model_config": _t5(64)},
    ),
    "flux2": (  # reads layers 9, 18 and 27
        flux.klein_te(),
        flux.KleinTokenizer,
        {"qwen3_4b_model_config": _llm(64, 28)},
    ),
}


def make_clip(kind: str, seed: int = 0) -> comfy.sd.CLIP:
    """A CLIP whose conditioning fits the networks of that kind."""
    model, tokenizer, options = KINDS[kind]
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    clip = comfy.sd.CLIP(target, model_options={**options, "dtype": torch.float32})
    clip.cond_stage_model.load_state_dict(seeded(clip.cond_stage_model.state_dict(), seed))
    return clip
