"""Has the parts that the prior and the decoder of Wuerstchen v2 (arXiv 2306.00637) share, and Stable Cascade has not.

Everything else in them is a block of Stable Cascade's, by the same names: `comfy.ldm.cascade.common`.
"""

from __future__ import annotations

import math

import torch
from comfy.ldm.cascade.common import LayerNorm2d_op
from torch import Tensor, nn

from .parts import Attention, Layers, Options, Shapes, numbered

_LONGEST = 10000.0  # of the waves that a noise level is written in
_KINDS = {"depthwise.weight": "C", "mapper.weight": "T", "attention.to_q.weight": "A"}


class AttentionBlock(nn.Module):
    """Adds to an image what its pixels find in the image itself and in a text, whose tokens have `width` numbers."""

    def __init__(self, channels: int, width: int, layers: Layers) -> None:
        super().__init__()
        self.norm = norm(channels, layers)
        self.attention = Attention(channels, layers)
        self.kv_mapper = nn.Sequential(nn.SiLU(), layers.linear(width, channels))

    def forward(self, x: Tensor, text: Tensor, options: Options) -> Tensor:
        """Return an image (batch, channels, height, width) for one of that shape and (batch, tokens, width) of text."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        seen = torch.cat([pixels, self.kv_mapper(text)], dim=1)
        keys, values = self.attention.to_k(seen), self.attention.to_v(seen)
        found = self.attention.attend(pixels, keys, values, None, options)
        return x + found.transpose(1, 2).reshape(x.shape)


def norm(channels: int, layers: Layers) -> nn.Module:
    """Return the norm over the channels of an image, which has no weights."""
    return LayerNorm2d_op(layers.operations)(channels, elementwise_affine=False, eps=1e-6)


def noise_embedding(noise: Tensor, width: int) -> Tensor:
    """Return (batch, width) waves, sines and then cosines, of noise levels (batch,) from 0 to 1; in their dtype."""
    half = width // 2
    steps = torch.arange(half, device=noise.device, dtype=torch.float32)
    frequencies = torch.exp(steps * -(math.log(_LONGEST) / (half - 1)))
    angles = noise[:, None] * _LONGEST * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return nn.functional.pad(waves, (0, width % 2)).to(noise.dtype)


def kinds(shapes: Shapes, before: str) -> str:
    """Return a letter for each numbered block that begins so: C convolution, T noise level, A attention, ? another."""
    return "".join(_kind(shapes, f"{before}{number}.") for number in range(numbered(shapes, before)))


def _kind(shapes: Shapes, before: str) -> str:
    return next((kind for name, kind in _KINDS.items() if before + name in shapes), "?")
