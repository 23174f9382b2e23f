"""Networks at the sizes in which they were published: one row each, of which ComfyUI makes the layers without weights.

What a row does not say is the default of ComfyUI's own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import torch
from torch import nn

from ..systems.kandinsky import Kandinsky22Decoder, Kandinsky22Prior
from ..systems.wuerstchen import Wuerstchen2Prior

_META = torch.device("meta")


@dataclass(frozen=True)
class Published:
    """`family` is the name of its row in `families.table`, `config_class` a class of ComfyUI's `supported_models` or
    one of this pack, `network` what detection tells of its file, `text` the class of its CLIP where files for it hold
    layers of that."""

    family: str
    config_class: str | type
    network: Mapping[str, Any]
    text: Any = None


@dataclass(frozen=True, eq=False)
class Bare:
    """Stands for a MODEL where only names and shapes of its layers are asked; `model` is without weights."""

    model: Any


@dataclass(frozen=True, eq=False)
class BareText:
    """The same for a CLIP."""

    cond_stage_model: nn.Module


def bare(row: Published) -> tuple[Bare, BareText | None]:
    """Return the network of a row, and its text encoders, on no device: no weight of them takes memory."""
    own = row.config_class
    config = (getattr(comfy.supported_models, own) if isinstance(own, str) else own)(dict(row.network))
    config.set_inference_dtype(torch.float16, None)
    text = BareText(row.text(device=_META, dtype=torch.float16)) if row.text else None
    return Bare(config.get_model({}, "", device=_META)), text


def _unet(**sizes: Any) -> dict[str, Any]:
    fixed = dict(
        use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
        use_temporal_attention=False, use_temporal_resblock=False, model_channels=320,
    )  # fmt: skip
    return {**fixed, **sizes, "num_res_blocks": [2] * len(sizes["channel_mult"])}


def _sd3(depth: int, width: int, places: int, second_attention: int = 0) -> dict[str, Any]:
    return dict(
        in_channels=16, patch_size=2, out_channels=16, depth=depth, input_size=None, adm_in_channels=2048,
        num_patches=places**2, pos_embed_max_size=places, pos_embed_scaling_factor=None, qk_norm="rms",
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": width}},
        x_block_self_attn_layers=list(range(second_attention)),
    )  # fmt: skip


def _flux(**more: Any) -> dict[str, Any]:
    fixed = dict(
        image_model="flux", axes_dim=[16, 56, 56], num_heads=24, hidden_size=3072, mlp_ratio=4.0, theta=10000,
        patch_size=2, in_channels=16, out_channels=16, qkv_bias=True, txt_ids_dims=[], context_in_dim=4096,
        vec_in_dim=768, depth=19, depth_single_blocks=38, yak_mlp=False, txt_norm=False,
    )  # fmt: skip
    return fixed | more


def _flux2(width: int, text: int, depth: int, single: int, guidance: bool) -> dict[str, Any]:
    return dict(
        image_model="flux2", axes_dim=[32] * 4, num_heads=width // 128, hidden_size=width, mlp_ratio=3.0, theta=2000,
        patch_size=1, in_channels=128, out_channels=128, qkv_bias=False, ops_bias=False, txt_ids_dims=[3],
        context_in_dim=text, vec_in_dim=None, depth=depth, depth_single_blocks=single, guidance_embed=guidance,
        yak_mlp=False, txt_norm=False, global_modulation=True, mlp_silu_act=True, default_ref_method="index",
        ref_index_scale=10.0,
    )  # fmt: skip


def _wan(width: int, inner: int, depth: int, channels: int = 16, kind: str = "t2v") -> dict[str, Any]:
    return dict(
        image_model="wan2.1", model_type=kind, dim=width, out_dim=channels, num_heads=width // 128, ffn_dim=inner,
        num_layers=depth, in_dim=36 if kind == "i2v" else channels, patch_size=(1, 2, 2), freq_dim=256,
        window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6,
    )  # fmt: skip


def _next_dit(width: int, heads: int, keys: int, text: int, depth: int, **more: Any) -> dict[str, Any]:
    return dict(
        image_model="lumina2", patch_size=2, in_channels=16, dim=width, cap_feat_dim=text, n_layers=depth, qk_norm=True,
        n_heads=heads, n_kv_heads=keys, n_refiner_layers=2, **more,
    )  # fmt: skip


def _kandinsky5(width: int, depth: int, text_blocks: int, time: int, channels: int) -> dict[str, Any]:
    return dict(
        image_model="kandinsky5", model_dim=width, axes_dims=(32, 48, 48), time_dim=time, ff_dim=4 * width,
        visual_embed_dim=channels, num_text_blocks=text_blocks, num_visual_blocks=depth,
    )  # fmt: skip


_SD_1_5 = _unet(
    adm_in_channels=None, context_dim=768, use_linear_in_transformer=False, channel_mult=[1, 2, 4, 4],
    transformer_depth=[1] * 6 + [0] * 2, transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1,
    num_heads=8,
)  # fmt: skip
_SDXL = _unet(
    num_classes="sequential", adm_in_channels=2816, context_dim=2048, use_linear_in_transformer=True,
    channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10, num_heads=-1,
    num_head_channels=64, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
)  # fmt: skip
_HIDREAM = dict(
    image_model="hidream", attention_head_dim=128, axes_dims_rope=[64, 32, 32], caption_channels=[4096, 4096],
    max_resolution=[128, 128], in_channels=16, llama_layers=[*range(32), *[31] * 16], num_attention_heads=20,
    num_routed_experts=4, num_activated_experts=2, num_layers=16, num_single_layers=32, out_channels=16, patch_size=2,
    text_emb_dim=2048,
)  # fmt: skip
_ANIMA = dict(
    image_model="anima", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2,
    patch_temporal=1, model_channels=2048, concat_padding_mask=True, crossattn_emb_channels=1024, pos_emb_cls="rope3d",
    pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30, use_adaln_lora=True,
    adaln_lora_dim=256, num_blocks=28, num_heads=16,
)  # fmt: skip
_LUMINA_2 = _next_dit(
    2304, 24, 8, 2304, 26, axes_dims=[32] * 3, axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=4.0
)
_Z_IMAGE = _next_dit(
    3840, 30, 30, 2560, 30, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0,
    ffn_dim_multiplier=8 / 3, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
)  # fmt: skip
_CHROMA = dict(
    image_model="chroma", axes_dim=[16, 56, 56], num_heads=24, hidden_size=3072, mlp_ratio=4.0, theta=10000,
    patch_size=2, in_channels=64, out_channels=64, qkv_bias=True, txt_ids_dims=[], context_in_dim=4096, vec_in_dim=None,
    depth=19, depth_single_blocks=38, in_dim=64, out_dim=3072, hidden_dim=5120, n_layers=5,
)  # fmt: skip
_CLIP_L, _CLIP_L_G = comfy.sd1_clip.SD1ClipModel, comfy.sdxl_clip.SDXLClipModel
_CLIP_L_G_T5, _CLIP_L_T5 = comfy.text_encoders.sd3_clip.SD3ClipModel, comfy.text_encoders.flux.FluxClipModel

PUBLISHED = (
    Published("SD 1.5", "SD15", _SD_1_5, _CLIP_L),
    Published("SDXL", "SDXL", _SDXL, _CLIP_L_G),
    Published("SD 3.5", "SD3", _sd3(24, 1536, 384, second_attention=13), _CLIP_L_G_T5),
    Published("SD 3.5", "SD3", _sd3(38, 2432, 192), _CLIP_L_G_T5),
    Published("FLUX.1 dev", "Flux", _flux(guidance_embed=True), _CLIP_L_T5),
    Published("FLUX.1 schnell", "FluxSchnell", _flux(guidance_embed=False), _CLIP_L_T5),
    Published("Chroma", "Chroma", _CHROMA),
    Published("FLUX.2", "Flux2", _flux2(6144, 15360, 8, 48, guidance=True)),
    Published("FLUX.2", "Flux2", _flux2(3072, 7680, 5, 20, guidance=False)),
    Published("FLUX.2", "Flux2", _flux2(4096, 12288, 8, 24, guidance=False)),
    Published("Wan 2.1", "WAN21_T2V", _wan(5120, 13824, 40)),
    Published("Wan 2.1", "WAN21_T2V", _wan(1536, 8960, 30)),
    Published("Wan 2.1", "WAN22_T2V", _wan(3072, 14336, 30, channels=48)),
    Published("Wan 2.1", "WAN21_I2V", _wan(5120, 13824, 40, kind="i2v")),
    Published("Wan 2.1", "WAN21_T2V", _wan(128, 512, 6) | {"num_heads": 2, "text_dim": 768}),  # LoRA Loom's demo base
    Published("Qwen-Image", "QwenImage", {"image_model": "qwen_image"}),
    Published("Krea 2", "Krea2", {"image_model": "krea2"}),
    Published("Ernie-Image", "ErnieImage", {"image_model": "ernie"}),
    Published("HiDream I1", "HiDream", _HIDREAM),
    Published("Ideogram 4", "Ideogram4", {"image_model": "ideogram4"}),
    Published("LTX-Video", "LTXV", {"image_model": "ltxv"}),
    Published(
        "LTX-Video", "LTXV",
        {"image_model": "ltxv", "num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096},
    ),
    Published("Kandinsky 5", "Kandinsky5Image", _kandinsky5(2560, 50, 2, 512, 64)),
    Published("Kandinsky 5", "Kandinsky5", _kandinsky5(1792, 32, 2, 512, 132)),
    Published("Kandinsky 5", "Kandinsky5", _kandinsky5(4096, 60, 4, 1024, 132)),
    Published("Anima", "Anima", _ANIMA),
    Published("Stable Cascade C", "Stable_Cascade_C", {"stable_cascade_stage": "c"}),
    Published("Stable Cascade B", "Stable_Cascade_B", {"stable_cascade_stage": "b"}),
    Published("Kandinsky 2.2 prior", Kandinsky22Prior, {"embed": 1280}),
    Published("Kandinsky 2.2 decoder", Kandinsky22Decoder, {"embed": 1280}),
    Published("Wuerstchen v2 prior", Wuerstchen2Prior, {}),
    Published("Z-Image", "ZImage", _Z_IMAGE),
    Published("Lumina 2", "Lumina2", _LUMINA_2),
)  # fmt: skip
