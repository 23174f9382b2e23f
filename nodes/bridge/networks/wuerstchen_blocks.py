"""What the prior and the decoder of Wuerstchen v2 (arXiv 2306.00637) are both built of, and Stable Cascade is not.

Everything else in them is a block of Stable Cascade's, by the same names: `comfy.ldm.cascade.common`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.cascade.common import LayerNorm2d_op
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

HEAD = 64  # channels of an attention head, which no weight tells
_LONGEST = 10000.0  # of the wave lengths that the noise level is written in


class Attention(nn.Module):
    """Attends from pixels to other tokens, with the weight names of diffusers."""

    def __init__(self, channels: int, heads: int, operations: Any, **place: Any) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (operations.Linear(channels, channels, **place) for _ in range(3))
        self.to_out = nn.ModuleList([operations.Linear(channels, channels, **place)])

    def forward(self, tokens: Tensor, others: Tensor, options: dict[str, Any]) -> Tensor:
        """Return (batch, tokens, channels) for `tokens` of that shape and `others`, (batch, any, channels)."""
        query, key, value = self.to_q(tokens), self.to_k(others), self.to_v(others)
        return self.to_out[0](optimized_attention(query, key, value, self.heads, transformer_options=options))


class AttentionBlock(nn.Module):
    """Adds to an image what its pixels find in the image itself and in the text.

    `width` is that of the text's tokens. `place` is the dtype and device of the weights.
    """

    def __init__(self, channels: int, width: int, heads: int, operations: Any, **place: Any) -> None:
        super().__init__()
        self.norm = norm(channels, operations, **place)
        self.attention = Attention(channels, heads, operations, **place)
        self.kv_mapper = nn.Sequential(nn.SiLU(), operations.Linear(width, channels, **place))

    def forward(self, x: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
        """Return an image (batch, channels, height, width) for one of that shape and (batch, tokens, width) of text."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        others = torch.cat([pixels, self.kv_mapper(text)], dim=1)
        return x + self.attention(pixels, others, options).transpose(1, 2).reshape(x.shape)


def norm(channels: int, operations: Any, **place: Any) -> nn.Module:
    """Return the norm over the channels of an image, which has no weights."""
    return LayerNorm2d_op(operations)(channels, elementwise_affine=False, eps=1e-6, **place)


def noise_embedding(noise: Tensor, width: int) -> Tensor:
    """Return (batch, width) waves, sines and then cosines, of noise levels (batch,) from 0 to 1, in their dtype."""
    half = width // 2
    steps = torch.arange(half, device=noise.device, dtype=torch.float32)
    frequencies = torch.exp(steps * -(math.log(_LONGEST) / (half - 1)))
    angles = noise[:, None] * _LONGEST * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return nn.functional.pad(waves, (0, width % 2)).to(noise.dtype)


def kinds(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> str:
    """Return what the blocks below a prefix are, in order: C convolution, T noise level, A attention, ? another."""
    marks = {"depthwise.weight": "C", "mapper.weight": "T", "attention.to_q.weight": "A"}
    names = [name.removeprefix(prefix).partition(".") for name in shapes if name.startswith(prefix)]
    count = 1 + max((int(number) for number, _, _ in names if number.isdigit()), default=-1)
    found = {int(number): marks[rest] for number, _, rest in names if number.isdigit() and rest in marks}
    return "".join(found.get(number, "?") for number in range(count))
