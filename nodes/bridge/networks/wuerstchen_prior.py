"""The prior of Wuerstchen v2 (stage C, arXiv 2306.00637): text to a latent of one pixel for 42 x 42 of the picture.

Weights have the names of the published file, that of diffusers' WuerstchenPrior.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.cascade.common import ResBlock, TimestepBlock
from torch import Tensor, nn

from .parts import Layers, Options, Shapes
from .wuerstchen_blocks import AttentionBlock, kinds, noise_embedding, norm

_SIGNS = ("projection.weight", "cond_mapper.0.weight", "blocks.1.mapper.weight", "out.1.weight")
_BLOCKS = "CTA"


def config(shapes: Shapes) -> dict[str, Any] | None:
    """Return the keywords of `WuerstchenPrior` for a file with these weights, None for one of another network."""
    blocks = kinds(shapes, "blocks.")
    depth = len(blocks) // len(_BLOCKS)
    if not all(name in shapes for name in _SIGNS) or blocks != _BLOCKS * depth:
        return None
    c, c_in, *_ = shapes["projection.weight"]
    _, c_cond = shapes["cond_mapper.0.weight"]
    _, c_r = shapes["blocks.1.mapper.weight"]
    return {"c_in": c_in, "c": c, "c_cond": c_cond, "c_r": c_r, "depth": depth}


class WuerstchenPrior(nn.Module):
    """Predicts the noise in a latent.

    `c_in` channels of the latent and `c` of the network, `c_cond` numbers in a token of text and `c_r` for a noise
    level, `depth` blocks of each kind.
    """

    def __init__(
        self,
        *,
        c_in: int = 16,
        c: int = 1536,
        c_cond: int = 1280,
        c_r: int = 64,
        depth: int = 32,
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any,
    ) -> None:
        super().__init__()
        self.dtype, self.c_r = dtype, c_r
        layers = Layers(operations, dtype, device)
        self.projection = layers.conv(c_in, c, size=1)
        self.cond_mapper = nn.Sequential(layers.linear(c_cond, c), nn.LeakyReLU(0.2), layers.linear(c, c))
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(ResBlock(c, **layers._asdict()))
            self.blocks.append(TimestepBlock(c, c_r, conds=[], **layers._asdict()))
            self.blocks.append(AttentionBlock(c, c, layers))
        self.out = nn.Sequential(norm(c, layers), layers.conv(c, 2 * c_in, size=1))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        transformer_options: Options | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the noise, shaped as `x`, in latents (batch, c_in, height, width).

        `timesteps` (batch,) are noise levels from 0 to 1. `context` (batch, tokens, c_cond) is CLIP's last hidden state
        after its final norm.
        """
        noise, text = noise_embedding(timesteps, self.c_r).to(x.dtype), self.cond_mapper(context)
        h = self.projection(x)
        for block in self.blocks:
            if isinstance(block, AttentionBlock):
                h = block(h, text, transformer_options or {})
            else:
                h = block(h, noise) if isinstance(block, TimestepBlock) else block(h)
        clean, scale = self.out(h).chunk(2, dim=1)
        return (x - clean) / ((1 - scale).abs() + 1e-5)
