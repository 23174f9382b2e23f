"""One row per model family: what the pack must know about it beyond what ComfyUI's model object tells."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`config_class` is a pattern of ComfyUI's `supported_models` classes; `keys` one of the family's LoRA key names.

    `timesteps` and `shift` are what `auto` trains with, `guidance` is the embedded guidance while training (None: not
    distilled), `architecture` and `base_version` are the spellings of modelspec and of `ss_base_model_version`.
    `prior` is what its CONDITIONING calls the latent of an earlier stage that pictures are made from. `captions` is how
    those of different lengths share a forward: with padding on that side, which attention is kept from; on the right,
    after the network's own adapter has read them; or "", not at all, as for every family without a row.
    `foreign` are names among ComfyUI's that diffusers does not read for this family: most are a sister family's.
    `text_encoders` are the CLIP encoders that can be trained, as ComfyUI calls them, in the order of their output.
    """

    name: str
    config_class: str
    architecture: str
    base_version: str
    keys: str
    timesteps: str = "uniform"
    shift: float = 1.0
    guidance: float | None = None
    foreign: str = r"(?!)"
    prior: str = ""
    text_encoders: tuple[str, ...] = ()
    captions: str = "right"


_FLUX = r"(double|single)_blocks_\d|single_transformer_blocks_\d+_(attn_to_[qkv]|proj_mlp|proj_out)$"
_FLUX_2 = r"single_transformer_blocks_\d+_attn_to_(qkv_mlp_proj|out)$|ff(_context)?_linear_(in|out)$"
_FLUX_1_LAYERS = r"\.single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)$|\.net\."
_FLUX_2_LAYERS = r"\.single_transformer_blocks\.\d+\.attn\.to_(qkv_mlp_proj|out)|\.linear_(in|out)$"
_QWEN = r"(lora_unet|diffusion_model)_transformer_blocks_\d|transformer_blocks_\d+_(img|txt)_(mlp|mod)_"
_KREA_2 = r"blocks_\d+_attn_(w[qkvo]|to_gate)|txtfusion|text_fusion"
_KANDINSKY_5 = r"(text|visual)_transformer_blocks_\d"
_ANIMA = r"_(self|cross)_attn_(output|[qkv])_proj|llm_adapter"
_CASCADE_C = r"(down|up)_blocks_[01]_\d+_attention_attn_|lora_prior_unet"
_CASCADE_B = r"(down_blocks_[23]|up_blocks_[01])_\d+_attention_attn_"
_NEXT_DIT = r"(layers|refiner)_\d+_attention_"  # Z-Image and Lumina 2: a tie, which the first row wins

FAMILIES = (
    Family(
        "SD 1.5",
        "SD15",
        "stable-diffusion-v1",
        "sd_v1",
        r"(blocks_\d+_1|block_1|attentions_\d)_transformer_blocks_0_attn[12]_",
        text_encoders=("clip_l",),
    ),
    Family(
        "SDXL",
        r"SDXL|SSD1B|Segmind_Vega|KOALA_\w+",
        "stable-diffusion-xl-v1-base",
        "sdxl_base_v1-0",
        r"(blocks_\d+_1|block_1|attentions_\d)_transformer_blocks_[1-9]_attn[12]_",
        foreign=r"class_embedding|lora_unet_add_embedding",
        text_encoders=("clip_l", "clip_g"),
    ),
    Family("SD 3.5", "SD3", "stable-diffusion-3", "sd3", r"joint_blocks_\d", "logit_normal"),
    Family("FLUX.1 dev", "Flux", "flux-1-dev", "flux1", _FLUX, "shifted", 3.0, 1.0, _FLUX_2_LAYERS),
    Family("FLUX.1 schnell", "FluxSchnell", "flux-1-schnell", "flux1", _FLUX, "shifted", 3.0, None, _FLUX_2_LAYERS),
    Family("Chroma", "Chroma", "chroma", "chroma", r"distilled_guidance", "logit_normal", 1.0, 0.0, _FLUX_2_LAYERS),
    Family("FLUX.2", "Flux2", "flux-2", "flux2", _FLUX_2, "shifted", 3.0, 1.0, _FLUX_1_LAYERS),
    Family("Wan 2.1", "WAN21_T2V", "wan-2.1", "wan2.1", r"blocks_\d+_(self|cross)_attn_[qkvo]$", "shifted", 3.0),
    Family("Qwen-Image", "QwenImage", "Qwen-Image", "qwen_image", _QWEN, "shifted", 3.0),
    Family("Krea 2", "Krea2", "krea-2", "krea2", _KREA_2, "shifted", 3.0),
    Family("Kandinsky 5", r"Kandinsky5(Image)?", "kandinsky-5", "kandinsky5", _KANDINSKY_5, "shifted", 3.0),
    Family("Anima", "Anima", "anima", "anima", _ANIMA, "shifted", 3.0, captions="adapter"),
    Family(
        "Stable Cascade C", "Stable_Cascade_C", "stable-cascade-v1-prior", "stable_cascade", _CASCADE_C, captions=""
    ),
    Family(
        "Stable Cascade B",
        "Stable_Cascade_B",
        "stable-cascade-v1-decoder",
        "stable_cascade",
        _CASCADE_B,
        prior="stable_cascade_prior",
    ),
    Family("Z-Image", "ZImage", "z-image", "z_image", _NEXT_DIT, "shifted", 2.0, captions="left"),
    Family(
        "Lumina 2",
        "Lumina2",
        "lumina-2",
        "lumina2",
        _NEXT_DIT,
        "shifted",
        6.0,
        None,
        r"^transformer\.",
        captions="left",
    ),
)


def for_config_class(name: str) -> Family:
    """The row of a ComfyUI model class. A class without one gets a plain row: it trains, with neutral defaults."""
    rows = [family for family in FAMILIES if re.fullmatch(family.config_class, name)]
    return rows[0] if rows else Family(name, name, name.lower(), name.lower(), r"(?!)", captions="")


_UNTRAINABLE = {
    r"CogVideoX_\w+": "its noising in ComfyUI is not the one it predicts for, so it would learn the wrong thing",
}


def check_trainable(config_class: str) -> None:
    """Raises ValueError for a ComfyUI model class that would train without error and learn the wrong thing."""
    for pattern, reason in _UNTRAINABLE.items():
        if re.fullmatch(pattern, config_class):
            raise ValueError(f"{config_class} cannot be trained: {reason}")


def guess_from_keys(names: list[str]) -> str:
    """The family that most of the telling names among a LoRA file's layers speak of, or 'an unknown family'."""
    flat = [re.sub(r"[.]", "_", name) for name in names]
    hits = {family.name: sum(bool(re.search(family.keys, name)) for name in flat) for family in FAMILIES}
    best = max(hits, key=hits.__getitem__)
    return best if hits[best] else "an unknown family"
