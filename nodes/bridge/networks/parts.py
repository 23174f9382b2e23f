"""Makes ComfyUI's layers for networks whose weights have the names of diffusers' files, and reads sizes off them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

Shapes = Mapping[str, tuple[int, ...]]
Options = Mapping[str, Any]  # ComfyUI's transformer_options
HEAD = 64  # numbers in a head of attention: no shape of a weight tells it, and all published files have it
GROUPS = 32


class Layers(NamedTuple):
    """ComfyUI's layers, whose weights all have one type and place: what it casts, moves and patches is made by these.

    `operations` is of comfy.ops, as ComfyUI chooses it for a model.
    """

    operations: Any
    dtype: torch.dtype | None
    device: torch.device | str | None

    def linear(self, inner: int, outer: int) -> nn.Module:
        return self.operations.Linear(inner, outer, **self._weights())

    def conv(self, inner: int, outer: int, size: int = 3, stride: int = 1, padding: int | None = None) -> nn.Module:
        """Keep height and width at stride 1, where no padding is given."""
        around = size // 2 if padding is None else padding
        return self.operations.Conv2d(inner, outer, size, stride=stride, padding=around, **self._weights())

    def group_norm(self, channels: int, epsilon: float) -> nn.Module:
        return self.operations.GroupNorm(GROUPS, channels, eps=epsilon, **self._weights())

    def layer_norm(self, width: int) -> nn.Module:
        return self.operations.LayerNorm(width, **self._weights())

    def embedding(self, count: int, width: int) -> nn.Module:
        return self.operations.Embedding(count, width, **self._weights())

    def parameter(self, *shape: int) -> nn.Parameter:
        """Make a weight that is in no layer; whoever uses it casts it by `like`."""
        return nn.Parameter(torch.empty(shape, **self._weights()))

    def _weights(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device}


class TimeEmbedding(nn.Module):
    """Turns times (batch,) into (batch, outer), through cosines and sines of `inner` frequencies."""

    def __init__(self, inner: int, outer: int, layers: Layers) -> None:
        super().__init__()
        self.inner = inner
        self.linear_1 = layers.linear(inner, outer)
        self.linear_2 = layers.linear(outer, outer)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        waves = timestep_embedding(timesteps, self.inner).to(dtype)
        return self.linear_2(functional.silu(self.linear_1(waves)))


class Attention(nn.Module):
    """Has the layers of an attention of tokens (batch, tokens, width), in heads of `HEAD` numbers."""

    def __init__(self, width: int, layers: Layers) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.to_q = layers.linear(width, width)
        self.to_k = layers.linear(width, width)
        self.to_v = layers.linear(width, width)
        self.to_out = nn.ModuleList([layers.linear(width, width)])

    def attend(self, tokens: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, options: Options) -> Tensor:
        """Return what the tokens see of others, whose keys and values have the same width; `mask` is added."""
        queries = self.to_q(tokens)
        out = optimized_attention(queries, keys, values, self.heads, mask=mask, transformer_options=options)
        return self.to_out[0](out)


def like(weight: Tensor, other: Tensor) -> Tensor:
    """Return a weight that is in no layer in the type and place of the numbers that it meets."""
    return comfy.ops.cast_to_input(weight, other, copy=False)


def numbered(shapes: Shapes, before: str) -> int:
    """Return how many numbers follow that beginning in the names: `blocks.` has 2 of blocks.0.weight, blocks.1.bias."""
    return len({name[len(before) :].partition(".")[0] for name in shapes if name.startswith(before)})
