"""Networks at their published sizes: rows like those of tests/tiny, to be built without memory, and what they read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.supported_models
import torch
from tiny.families import FAMILIES, SD_WHOLE, Tiny

META = torch.device("meta")


@dataclass(frozen=True)
class Real:
    """A network of `billions` of weights, as its authors say. `preset` is its row of `training.presets`. It reads text
    of so many `tokens` of `width` and a vector of `pooled`; one place of its latent covers `cell` pixels of a side.
    `llama` layers of Llama beside it are HiDream's."""

    row: Tiny
    billions: float
    preset: str
    tokens: int
    width: int
    pooled: int = 0
    cell: int = 8
    llama: int = 0

    def conditioning(self, generator: torch.Generator | None = None) -> list:
        """Return a CONDITIONING as the network takes it: zeros, or noise."""
        shape = (1, self.tokens, self.width)
        text = torch.randn(shape, generator=generator) if generator else torch.zeros(shape)
        more: dict[str, Any] = {"pooled_output": torch.zeros(1, self.pooled)} if self.pooled else {}
        if self.llama:
            more["conditioning_llama3"] = torch.zeros(1, self.llama, self.tokens, self.width)
        return [[text, {**more, "guidance": 1.0}]]

    def latent(self, model: Any, pixels: int) -> tuple[int, ...]:
        """Return the shape of a square picture's latent for this MODEL; where latents are of clips, of one frame."""
        space, side = model.model.latent_format, pixels // self.cell
        return (space.latent_channels, *([1] if space.latent_dimensions == 3 else []), side, side)


def _sized(name: str, **sizes: Any) -> Tiny:
    row = FAMILIES[name]
    return replace(row, unet={**row.unet, **sizes})


def _text(out: int) -> dict[str, Any]:
    return {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": out}}


def shell(row: Tiny, dtype: torch.dtype, cast: torch.dtype | None = None, device: torch.device = META) -> Any:
    """ComfyUI's model of the row with memory for its weights, or, on the meta device, with none. They are cast to
    `cast`, where given, for every use."""
    config = getattr(comfy.supported_models, row.config)(dict(row.unet))
    config.set_inference_dtype(dtype, cast)
    return config.get_model({}, "", device=device)


_FLUX = dict(hidden_size=3072, num_heads=24, context_in_dim=4096)

SD_1_5 = _sized("sd15_full", **{**SD_WHOLE, "model_channels": 320})
SDXL = _sized(
    "sdxl", model_channels=320, channel_mult=[1, 2, 4], context_dim=2048, adm_in_channels=2816, num_heads=-1,
    num_head_channels=64, transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
)  # fmt: skip
SD_3_5_MEDIUM = _sized(
    "sd35_medium", depth=24, adm_in_channels=2048, num_patches=384**2, pos_embed_max_size=384,
    x_block_self_attn_layers=list(range(13)), context_embedder_config=_text(1536),
)  # fmt: skip
SD_3_5_LARGE = _sized(
    "sd35_large", depth=38, adm_in_channels=2048, num_patches=192**2, pos_embed_max_size=192,
    context_embedder_config=_text(2432),
)  # fmt: skip
FLUX_1 = _sized("flux1", **_FLUX, vec_in_dim=768, depth=19, depth_single_blocks=38)
FLUX_1_BLOCK = _sized("flux1", **_FLUX, vec_in_dim=768, depth=0, depth_single_blocks=1)
CHROMA = _sized(
    "chroma", **_FLUX, depth=19, depth_single_blocks=38, out_dim=3072, hidden_dim=5120, n_layers=5,
)  # fmt: skip
FLUX_2_KLEIN_4B = _sized("flux2", **{**_FLUX, "context_in_dim": 7680}, depth=5, depth_single_blocks=20)
FLUX_2_DEV = _sized(
    "flux2", hidden_size=6144, num_heads=48, context_in_dim=15360, depth=8, depth_single_blocks=48, guidance_embed=True
)
QWEN_IMAGE = _sized("qwen_image", num_layers=60, num_attention_heads=24, joint_attention_dim=3584)
Z_IMAGE = _sized("zimage", dim=3840, n_heads=30, n_kv_heads=30, cap_feat_dim=2560, n_layers=30, n_refiner_layers=2)
LUMINA_2 = _sized("lumina2", dim=2304, n_heads=24, n_kv_heads=8, cap_feat_dim=2304, n_layers=26, n_refiner_layers=2)
HIDREAM = _sized(
    "hidream", caption_channels=[4096, 4096], llama_layers=[*range(32), *[31] * 16], num_attention_heads=20,
    num_layers=16, num_single_layers=32, text_emb_dim=2048,
)  # fmt: skip
WAN_1_3B = _sized("wan21", dim=1536, num_heads=12, ffn_dim=8960, num_layers=30)
WAN_14B = _sized("wan21", dim=5120, num_heads=40, ffn_dim=13824, num_layers=40)

REAL = {
    "SD 1.5": Real(SD_1_5, 0.86, "SD 1.5", tokens=77, width=768),
    "SDXL": Real(SDXL, 2.57, "SDXL", tokens=77, width=2048, pooled=1280),
    "SD 3.5 medium": Real(SD_3_5_MEDIUM, 2.5, "SD 3.5", tokens=154, width=4096, pooled=2048),
    "SD 3.5 large": Real(SD_3_5_LARGE, 8.1, "SD 3.5", tokens=154, width=4096, pooled=2048),
    "FLUX.1": Real(FLUX_1, 11.9, "FLUX.1 dev", tokens=512, width=4096, pooled=768),
    "Chroma": Real(CHROMA, 8.9, "Chroma", tokens=512, width=4096),
    "FLUX.2 klein 4B": Real(FLUX_2_KLEIN_4B, 3.9, "FLUX.2", tokens=512, width=7680, cell=16),
    "FLUX.2 dev": Real(FLUX_2_DEV, 32.2, "FLUX.2", tokens=512, width=15360, cell=16),
    "Qwen-Image": Real(QWEN_IMAGE, 20.4, "Qwen-Image", tokens=256, width=3584),
    "Z-Image": Real(Z_IMAGE, 6.15, "Z-Image", tokens=256, width=2560),
    "Lumina 2": Real(LUMINA_2, 2.6, "Lumina 2", tokens=256, width=2304),
    "HiDream": Real(HIDREAM, 17.1, "HiDream I1", tokens=128, width=4096, pooled=2048, llama=32),
    "Wan 2.1 1.3B": Real(WAN_1_3B, 1.42, "Wan 2.1", tokens=512, width=4096),
    "Wan 2.1 14B": Real(WAN_14B, 14.3, "Wan 2.1", tokens=512, width=4096),
}
