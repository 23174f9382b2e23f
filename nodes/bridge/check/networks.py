"""Networks of ComfyUI's own classes with seeded weights: tiny ones of four families, and two as wide as people's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import comfy.model_patcher
import comfy.supported_models
import torch
from torch import Tensor, nn

from ..host.wires import Model

_POOL = 2**22  # random numbers that the weights of a wide network are made of, again and again


@dataclass(frozen=True)
class Network:
    """`config`: a class of comfy.supported_models; `unet`: what ComfyUI detects in a file of it. `text` is the width of
    its captions' tokens, `pooled` that of their summary; `latent` is a latent's shape, (channels, ...)."""

    name: str
    config: str
    unet: dict[str, Any]
    text: int
    pooled: int
    latent: tuple[int, ...]

    def caption(self, tokens: int, seed: int = 0) -> list:
        """CONDITIONING of a caption of that many tokens."""
        generator = torch.Generator().manual_seed(1000 * tokens + seed)
        text = torch.randn(1, tokens, self.text, generator=generator)
        pooled = {"pooled_output": torch.randn(1, self.pooled, generator=generator)} if self.pooled else {}
        return [[text, {**pooled, "guidance": 1.0}]]

    def shell(self, store: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return ComfyUI's model of it, without weights."""
        config = getattr(comfy.supported_models, self.config)(dict(self.unet))
        config.set_inference_dtype(dtype, None)
        return config.get_model({}, "", device=store)

    def build(self, home: torch.device, dtype: torch.dtype, wide: bool = False) -> Model:
        """Return a MODEL that computes on `home` in `dtype`, its weights in RAM as a loader leaves them: the same
        numbers on any device."""
        base_model = self.shell(torch.device("cpu"), dtype)
        _fill(cast(nn.Module, base_model.diffusion_model), _repeated() if wide else _drawn())
        base_model.eval()
        return comfy.model_patcher.ModelPatcher(base_model, load_device=home, offload_device=torch.device("cpu"))


def _drawn() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda like: torch.randn(like.shape, generator=generator)


def _repeated() -> Callable[[Tensor], Tensor]:
    """Copied from a pool, since drawing billions of numbers takes minutes."""
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    return lambda like: pool.repeat(-(-like.numel() // _POOL))[: like.numel()].view(like.shape)


@torch.no_grad()
def _fill(network: nn.Module, noise: Callable[[Tensor], Tensor]) -> None:
    """Weights that keep activations near 1, none of them zero, which would hide mistakes."""
    for name, value in sorted(network.state_dict().items()):
        if value.ndim > 1:
            value.copy_(noise(value) * (0.8 / math.sqrt(math.prod(value.shape[1:]))))
        else:
            value.copy_(noise(value) * 0.01 + (0.0 if name.endswith("bias") else 1.0))


def _unet(**sizes: Any) -> dict[str, Any]:
    return dict(
        use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
        use_temporal_attention=False, use_temporal_resblock=False, adm_in_channels=None,
        use_linear_in_transformer=False,
    ) | sizes  # fmt: skip


def _sdxl(**sizes: Any) -> dict[str, Any]:
    return _unet(num_classes="sequential", num_res_blocks=[2, 2, 2], **sizes) | dict(use_linear_in_transformer=True)


def _flux(**sizes: Any) -> dict[str, Any]:
    return dict(
        image_model="flux", axes_dim=[16, 56, 56], mlp_ratio=4.0, theta=10000, patch_size=2, in_channels=16,
        out_channels=16, qkv_bias=True, txt_ids_dims=[], guidance_embed=True, yak_mlp=False, txt_norm=False,
    ) | sizes  # fmt: skip


SD15 = Network(
    "SD 1.5-like", "SD15",
    _unet(
        context_dim=64, model_channels=64, num_res_blocks=[1, 1], channel_mult=[1, 2], transformer_depth=[1, 1],
        transformer_depth_output=[1] * 4, transformer_depth_middle=1, num_heads=4,
    ),
    64, 0, (4, 8, 8),
)  # fmt: skip
SDXL = Network(
    "SDXL-like", "SDXL",
    _sdxl(
        model_channels=64, channel_mult=[1, 1, 1], transformer_depth=[0, 0, 1, 1, 2, 2], context_dim=96,
        transformer_depth_middle=2, transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2], num_head_channels=64,
        num_heads=-1, adm_in_channels=64 + 6 * 256,
    ),
    96, 64, (4, 8, 8),
)  # fmt: skip
FLUX = Network(
    "FLUX-like", "Flux",
    _flux(num_heads=1, hidden_size=128, context_in_dim=64, vec_in_dim=64, depth=2, depth_single_blocks=2),
    64, 64, (16, 8, 8),
)  # fmt: skip
QWEN = Network(
    "Qwen-Image-like", "QwenImage",
    dict(
        image_model="qwen_image", in_channels=64, num_layers=2, attention_head_dim=128, num_attention_heads=1,
        joint_attention_dim=64,
    ),
    64, 0, (16, 1, 8, 8),
)  # fmt: skip
TINY = (SD15, SDXL, FLUX, QWEN)

SDXL_WIDE = Network(
    "SDXL, whole", "SDXL",
    _sdxl(
        model_channels=320, channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], context_dim=2048,
        transformer_depth_middle=10, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], num_head_channels=64,
        num_heads=-1, adm_in_channels=2816,
    ),
    2048, 1280, (4, 128, 128),
)  # fmt: skip
FLUX_WIDE = Network(
    "FLUX.1, 6 of its 57 blocks", "Flux",
    _flux(num_heads=24, hidden_size=3072, context_in_dim=4096, vec_in_dim=768, depth=2, depth_single_blocks=4),
    4096, 768, (16, 128, 128),
)  # fmt: skip
WIDE = (SDXL_WIDE, FLUX_WIDE)


def tokens(network: Network) -> int:
    """Return the number of tokens of a caption as long as the family's text encoders make it."""
    return 512 if network.config == "Flux" else 77
