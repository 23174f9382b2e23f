"""The VQGAN of Wuerstchen v2: pictures to latents of one pixel for 4 x 4, and back (Paella, arXiv 2211.07292)."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.cascade.stage_a import StageA
from torch import Tensor, nn

from .parts import Shapes

SCALE = 0.3764  # a latent of the decoder, times this, is one of the VQGAN

_CODEBOOK = "vquantizer.embedding.weight"


class WuerstchenVqgan(StageA):
    """Encodes pictures and decodes latents. Its weights have the names of diffusers' PaellaVQModel, published as such.

    The network is that of Stable Cascade's stage A. Each of `levels` halves the picture, the last with `c_hidden`
    channels; the way back begins with `bottleneck_blocks`. `c_latent` channels of the latent. There is a codebook of
    `codebook_size`, but nothing is quantised. ComfyUI's `operations` are not used: StageA has its own.
    """

    def __init__(
        self,
        *,
        levels: int = 2,
        bottleneck_blocks: int = 12,
        c_hidden: int = 384,
        c_latent: int = 4,
        codebook_size: int = 8192,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **_: Any,
    ) -> None:
        with torch.device(device or "cpu"):
            super().__init__(levels, bottleneck_blocks, c_hidden, c_latent, codebook_size=codebook_size)
            self.vquantizer = nn.ModuleDict({"embedding": nn.Embedding(codebook_size, c_latent)})
        self.to(dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (batch, c_latent, height / 4, width / 4) of pictures (batch, 3, ...) from -1 to 1."""
        latents: Any = super().encode(x / 2 + 0.5)
        return latents

    def decode(self, x: Tensor) -> Tensor:
        """Return pictures (batch, 3, height * 4, width * 4), about -1 to 1, of latents (batch, c_latent, ...)."""
        return super().decode(x) * 2 - 1


def config(shapes: Shapes) -> dict[str, int] | None:
    """Return the keywords of WuerstchenVqgan for weights of these shapes by name; None if they are another network's,
    such as Stable Cascade's stage A, whose codebook has another name."""
    if _CODEBOOK not in shapes or "in_block.1.weight" not in shapes:
        return None
    down, up = (
        sum(name.startswith(side) and name.endswith(".gammas") for name in shapes)
        for side in ("down_blocks.", "up_blocks.")
    )
    codebook_size, c_latent = shapes[_CODEBOOK]
    return {
        "levels": down,
        "bottleneck_blocks": up - (down - 1),
        "c_hidden": shapes["up_blocks.0.0.weight"][0],
        "c_latent": c_latent,
        "codebook_size": codebook_size,
    }
