"""The decoder of Kandinsky 2.2: a UNet that makes a picture's latent of a CLIP image embedding.

The architecture is that of diffusers' UNet2DConditionModel with image conditioning (arXiv 2310.03502); weights have the
names of the published file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .parts import Attention, Layers, Options, Shapes, TimeEmbedding, numbered

LATENT = 4
_SIGNS = ("conv_in.weight", "add_embedding.image_norm.weight", "encoder_hid_proj.norm.weight")
HINT = "add_embedding.input_hint_block.0.weight"  # of the ControlNet's file
_EPSILON = 1e-5


def config(shapes: Shapes) -> dict[str, Any] | None:
    """Return the keywords of `KandinskyDecoder` for a file with these weights, None for one of another network."""
    if not all(name in shapes for name in _SIGNS) or HINT in shapes or shapes["conv_in.weight"][1] != LATENT:
        return None
    (context,) = shapes["encoder_hid_proj.norm.weight"]
    levels = range(numbered(shapes, "down_blocks."))
    return {
        "channels": tuple(shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels),
        "layers": numbered(shapes, "down_blocks.0.resnets."),
        "context": context,
        "embed": shapes["add_embedding.image_proj.weight"][1],
        "tokens": shapes["encoder_hid_proj.image_embeds.bias"][0] // context,
    }


class KandinskyDecoder(nn.Module):
    """Predicts the noise in latents, alone: the variance, the last 4 of the 8 channels of its weights, is cut off.

    `channels` of each level, `layers` in one, `tokens` of `context` numbers that attention is given of an image
    embedding, which has `embed` numbers.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (384, 768, 1152, 1536),
        layers: int = 3,
        context: int = 768,
        embed: int = 1280,
        tokens: int = 32,
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any,
    ) -> None:
        super().__init__()
        self.dtype, self.layers, self.multiple = dtype, layers, 2 ** (len(channels) - 1)
        make, first, time = Layers(operations, dtype, device), channels[0], 4 * channels[0]
        kind = _Kind(time, context, make)
        self.conv_in = make.conv(LATENT, first)
        self.time_embedding = TimeEmbedding(first, time, make)
        self.add_embedding = _ImageTime(embed, time, make)
        self.encoder_hid_proj = _ImageTokens(embed, context, tokens, make)
        self.down_blocks = nn.ModuleList(_down(channels, layers, kind))
        self.mid_block = _Middle(channels[-1], kind)
        self.up_blocks = nn.ModuleList(_up(channels, layers, kind))
        self.conv_norm_out = make.group_norm(first, _EPSILON)
        self.conv_out = make.conv(first, 2 * LATENT)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        transformer_options: Options | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the noise in latents `x` (batch, 4, height, width), of the same shape.

        `y` (batch, embed) is the image embedding; there is no other conditioning, so `context` is not looked at. Raises
        ValueError for latents whose sides cannot be halved as often as there are levels.
        """
        if y is None:
            raise ValueError("the decoder of Kandinsky 2.2 needs an image embedding; connect what its prior makes")
        self._check_size(x)
        options = transformer_options or {}
        time = functional.silu(self.time_embedding(timesteps, x.dtype) + self.add_embedding(y))
        image = self.encoder_hid_proj(y)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            skips += level(x, time, image, options)
            x = skips[-1]
        x = self.mid_block(x, time, image, options)
        for level in self.up_blocks:
            beside = [skips.pop() for _ in range(self.layers + 1)]
            x = level(x, time, image, beside, options)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))[:, :LATENT]

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"Kandinsky 2.2 works on latents whose sides are multiples of {self.multiple}, {8 * self.multiple} "
                f"pixels of a picture, but this latent is {width} x {height}; choose another size"
            )


class _Kind:
    """Holds what all levels have in common: numbers of the time's embedding, of a token, and how layers are made."""

    def __init__(self, time: int, context: int, make: Layers) -> None:
        self.time, self.context, self.make = time, context, make


def _down(channels: Sequence[int], layers: int, kind: _Kind) -> list[nn.Module]:
    """The first level has no attention, the last one does not halve."""
    levels, last = [], len(channels) - 1
    for number, outer in enumerate(channels):
        inner = [channels[max(number - 1, 0)], *[outer] * (layers - 1)]
        levels.append(_Down(inner, outer, kind, attends=number > 0, halves=number < last))
    return levels


def _up(channels: Sequence[int], layers: int, kind: _Kind) -> list[nn.Module]:
    """From the lowest level: each is given what came from below, and beside it what the way down left."""
    levels = []
    for number, outer in reversed([*enumerate(channels)]):
        below, beside = channels[min(number + 1, len(channels) - 1)], channels[max(number - 1, 0)]
        inner = [below + outer, *[2 * outer] * (layers - 1), outer + beside]
        levels.append(_Up(inner, outer, kind, attends=number > 0, doubles=number > 0))
    return levels


class _Resnet(nn.Module):
    """Takes (batch, inner, height, width) to (batch, outer, height, width), halved or doubled if `resize` does so."""

    def __init__(self, inner: int, outer: int, kind: _Kind, resize: Any = None) -> None:
        super().__init__()
        make = kind.make
        self.resize = resize
        self.norm1 = make.group_norm(inner, _EPSILON)
        self.conv1 = make.conv(inner, outer)
        self.time_emb_proj = make.linear(kind.time, 2 * outer)
        self.norm2 = make.group_norm(outer, _EPSILON)
        self.conv2 = make.conv(outer, outer)
        self.conv_shortcut = make.conv(inner, outer, 1) if inner != outer else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = functional.silu(self.norm1(x))
        if self.resize is not None:
            hidden, x = self.resize(hidden), self.resize(x)
        scale, shift = rearrange(self.time_emb_proj(time), "b (two c) -> two b c 1 1", two=2)
        hidden = self.norm2(self.conv1(hidden)) * (1 + scale) + shift
        hidden = self.conv2(functional.silu(hidden))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def _halved(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2)


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class _PictureAttention(Attention):
    """Attends from each pixel to the image's tokens and to all pixels."""

    def __init__(self, channels: int, kind: _Kind) -> None:
        super().__init__(channels, kind.make)
        self.group_norm = kind.make.group_norm(channels, _EPSILON)
        self.add_k_proj = kind.make.linear(kind.context, channels)
        self.add_v_proj = kind.make.linear(kind.context, channels)

    def forward(self, x: Tensor, image: Tensor, options: Options) -> Tensor:
        pixels = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        keys = torch.cat([self.add_k_proj(image), self.to_k(pixels)], 1)
        values = torch.cat([self.add_v_proj(image), self.to_v(pixels)], 1)
        out = self.attend(pixels, keys, values, None, options)
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])


class _Level(nn.Module):
    """Resnets, each with an attention after it if the level attends."""

    def __init__(self, inner: Sequence[int], outer: int, kind: _Kind, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(each, outer, kind) for each in inner)
        self.attentions = nn.ModuleList(_PictureAttention(outer, kind) for _ in inner) if attends else None

    def layer(self, number: int, x: Tensor, time: Tensor, image: Tensor, options: Options) -> Tensor:
        x = self.resnets[number](x, time)
        return x if self.attentions is None else self.attentions[number](x, image, options)


class _Down(_Level):
    def __init__(self, inner: Sequence[int], outer: int, kind: _Kind, *, attends: bool, halves: bool) -> None:
        super().__init__(inner, outer, kind, attends)
        self.downsamplers = nn.ModuleList([_Resnet(outer, outer, kind, _halved)] if halves else [])

    def forward(self, x: Tensor, time: Tensor, image: Tensor, options: Options) -> list[Tensor]:
        """Return what every layer gives."""
        found = []
        for number in range(len(self.resnets)):
            x = self.layer(number, x, time, image, options)
            found.append(x)
        return found + [halving(x, time) for halving in self.downsamplers]


class _Up(_Level):
    def __init__(self, inner: Sequence[int], outer: int, kind: _Kind, *, attends: bool, doubles: bool) -> None:
        super().__init__(inner, outer, kind, attends)
        self.upsamplers = nn.ModuleList([_Resnet(outer, outer, kind, _doubled)] if doubles else [])

    def forward(self, x: Tensor, time: Tensor, image: Tensor, beside: list[Tensor], options: Options) -> Tensor:
        """Each layer is given one of `beside`, too. Neither here nor on the way down is a list changed: a level whose
        gradients are computed by another forward finds what it found before."""
        for number, skip in enumerate(beside):
            x = self.layer(number, torch.cat([x, skip], 1), time, image, options)
        for doubling in self.upsamplers:
            x = doubling(x, time)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, kind: _Kind) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(channels, channels, kind) for _ in range(2))
        self.attentions = nn.ModuleList([_PictureAttention(channels, kind)])

    def forward(self, x: Tensor, time: Tensor, image: Tensor, options: Options) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time), image, options)
        return self.resnets[1](x, time)


class _ImageTokens(nn.Module):
    """Makes (batch, tokens, context) of image embeddings (batch, embed)."""

    def __init__(self, embed: int, context: int, tokens: int, make: Layers) -> None:
        super().__init__()
        self.tokens = tokens
        self.image_embeds = make.linear(embed, tokens * context)
        self.norm = make.layer_norm(context)

    def forward(self, y: Tensor) -> Tensor:
        return self.norm(rearrange(self.image_embeds(y), "b (n c) -> b n c", n=self.tokens))


class _ImageTime(nn.Module):
    """Makes of image embeddings (batch, embed) what is added to the time's, (batch, time)."""

    def __init__(self, embed: int, time: int, make: Layers) -> None:
        super().__init__()
        self.image_proj = make.linear(embed, time)
        self.image_norm = make.layer_norm(time)

    def forward(self, y: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(y))
