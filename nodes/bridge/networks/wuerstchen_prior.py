"""The prior of Wuerstchen v2 (stage C, arXiv 2306.00637): text to a latent of one pixel for 42 x 42 of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.cascade.common import ResBlock, TimestepBlock
from torch import Tensor, nn

from .wuerstchen_blocks import HEAD, AttentionBlock, kinds, noise_embedding, norm


class WuerstchenPrior(nn.Module):
    """Predicts the noise in a latent. Its weights have the names of diffusers' WuerstchenPrior, published as such.

    `c_in` is the latent's channels, `c` the network's, `c_cond` the width of the text's tokens, `c_r` that of the noise
    level, `depth` the number of blocks of each kind and `nhead` the attention's heads. `operations` is one of
    comfy.ops; what else ComfyUI passes of a model's configuration is not used.
    """

    def __init__(
        self,
        *,
        c_in: int = 16,
        c: int = 1536,
        c_cond: int = 1280,
        c_r: int = 64,
        depth: int = 32,
        nhead: int = 24,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any,
        **_: Any,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        self.dtype, self.c_r = dtype, c_r
        self.projection = operations.Conv2d(c_in, c, kernel_size=1, **place)
        self.cond_mapper = nn.Sequential(
            operations.Linear(c_cond, c, **place), nn.LeakyReLU(0.2), operations.Linear(c, c, **place)
        )
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(ResBlock(c, operations=operations, **place))
            self.blocks.append(TimestepBlock(c, c_r, conds=[], operations=operations, **place))
            self.blocks.append(AttentionBlock(c, c, nhead, operations, **place))
        self.out = nn.Sequential(norm(c, operations, **place), operations.Conv2d(c, 2 * c_in, kernel_size=1, **place))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006, as ComfyUI's networks have it
        **_: Any,
    ) -> Tensor:
        """Return the noise, shaped as `x`, in latents (batch, c_in, height, width).

        `timesteps` are noise levels (batch,) from 0 to 1, `context` is text (batch, tokens, c_cond).
        """
        text, noise = self.cond_mapper(context), noise_embedding(timesteps, self.c_r).to(x.dtype)
        h = self.projection(x)
        for block in self.blocks:
            if isinstance(block, AttentionBlock):
                h = block(h, text, transformer_options)
            else:
                h = block(h, noise) if isinstance(block, TimestepBlock) else block(h)
        clean, scale = self.out(h).chunk(2, dim=1)
        return (x - clean) / ((1 - scale).abs() + 1e-5)


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Return the keywords of WuerstchenPrior for weights of these shapes by name; None if they are another network's.

    The number of heads is read from the width: 64 channels each, as in every published file.
    """
    needed = ("projection.weight", "cond_mapper.0.weight", "blocks.1.mapper.weight", "out.1.weight")
    blocks = kinds(shapes, "blocks.")
    if any(name not in shapes for name in needed) or not blocks or blocks != "CTA" * (len(blocks) // 3):
        return None
    c, c_in = shapes["projection.weight"][:2]
    return {
        "c_in": c_in,
        "c": c,
        "c_cond": shapes["cond_mapper.0.weight"][1],
        "c_r": shapes["blocks.1.mapper.weight"][1],
        "depth": len(blocks) // 3,
        "nhead": c // HEAD,
    }
