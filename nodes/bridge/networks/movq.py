"""MoVQ, the VAE of Kandinsky 2 (Zheng et al. 2022, arXiv 2209.09002), as diffusers' VQModel with spatial norms has it.

Weights have the names of the published file. Latents are not quantised: Kandinsky's pipelines take them as they are,
when they encode as when they decode, so the codebook is in the file, and here, but has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from comfy.ldm.modules.diffusionmodules.model import vae_attention
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .parts import Layers, Shapes, numbered

_SIGNS = ("quantize.embedding.weight", "quant_conv.weight", "decoder.conv_norm_out.conv_y.weight")
_EPSILON = 1e-6


def config(shapes: Shapes) -> dict[str, Any] | None:
    """Return the keywords of `MoVQ` for a file with these weights, None for one of another network."""
    if not all(name in shapes for name in _SIGNS):
        return None
    levels = range(numbered(shapes, "encoder.down_blocks."))
    return {
        "channels": tuple(shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels),
        "layers": numbered(shapes, "encoder.down_blocks.0.resnets."),
        "latent": shapes["quant_conv.weight"][1],
        "codes": shapes["quantize.embedding.weight"][0],
    }


class MoVQ(nn.Module):
    """Turns pictures into latents and back, as ComfyUI's VAE calls it.

    `channels` of each level from the largest picture down, `layers` in one, `latent` channels, `codes` in the codebook.
    A latent's side is 2^(levels - 1) times smaller than the picture's.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (128, 256, 256, 512),
        layers: int = 2,
        latent: int = 4,
        codes: int = 16384,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any,
    ) -> None:
        super().__init__()
        make = Layers(operations, dtype, device)
        self.encoder = _Encoder(channels, layers, latent, make)
        self.quant_conv = make.conv(latent, latent, 1)
        self.quantize = _Codebook(codes, latent, make)
        self.post_quant_conv = make.conv(latent, latent, 1)
        self.decoder = _Decoder(channels, layers, latent, make)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the latents (batch, latent, h, w) of pixels (batch, 3, height, width) in -1..1."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels (batch, 3, height, width), about -1..1, of latents (batch, latent, h, w)."""
        return self.decoder(self.post_quant_conv(latents), latents)


class _Codebook(nn.Module):
    def __init__(self, codes: int, latent: int, make: Layers) -> None:
        super().__init__()
        self.embedding = make.embedding(codes, latent)


class _Encoder(nn.Module):
    def __init__(self, channels: Sequence[int], layers: int, latent: int, make: Layers) -> None:
        super().__init__()
        kind, last = _Kind(make, None), len(channels) - 1
        self.conv_in = make.conv(3, channels[0])
        levels = []
        for number, outer in enumerate(channels):
            inner = [channels[max(number - 1, 0)], *[outer] * (layers - 1)]
            levels.append(_Down(inner, outer, kind, attends=number == last, halves=number < last))
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = _Middle(channels[-1], kind)
        self.conv_norm_out = kind.norm(channels[-1])
        self.conv_out = make.conv(channels[-1], latent)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for level in self.down_blocks:
            x = level(x, None)
        x = self.mid_block(x, None)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


class _Decoder(nn.Module):
    def __init__(self, channels: Sequence[int], layers: int, latent: int, make: Layers) -> None:
        super().__init__()
        kind, last = _Kind(make, latent), len(channels) - 1
        self.conv_in = make.conv(latent, channels[-1])
        self.mid_block = _Middle(channels[-1], kind)
        levels = []
        for number, outer in reversed([*enumerate(channels)]):
            inner = [channels[min(number + 1, last)], *[outer] * layers]
            levels.append(_Up(inner, outer, kind, attends=number == last, doubles=number > 0))
        self.up_blocks = nn.ModuleList(levels)
        self.conv_norm_out = kind.norm(channels[0])
        self.conv_out = make.conv(channels[0], 3)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x), latents)
        for level in self.up_blocks:
            x = level(x, latents)
        return self.conv_out(functional.silu(self.conv_norm_out(x, latents)))


class _SpatialNorm(nn.Module):
    """Scales and shifts each pixel by what the latent is there: the "modulated" of MoVQ."""

    def __init__(self, channels: int, latent: int, make: Layers) -> None:
        super().__init__()
        self.norm_layer = make.group_norm(channels, _EPSILON)
        self.conv_y = make.conv(latent, channels, 1)
        self.conv_b = make.conv(latent, channels, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        latents = functional.interpolate(latents, size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(latents) + self.conv_b(latents)


class _Kind(NamedTuple):
    """How the layers of one half are made, and how many channels of latents its norms look at, None for none."""

    make: Layers
    latent: int | None

    def norm(self, channels: int) -> nn.Module:
        if self.latent is None:
            return self.make.group_norm(channels, _EPSILON)
        return _SpatialNorm(channels, self.latent, self.make)


def _normed(norm: nn.Module, x: Tensor, latents: Tensor | None) -> Tensor:
    return norm(x) if latents is None else norm(x, latents)


class _Resnet(nn.Module):
    def __init__(self, inner: int, outer: int, kind: _Kind) -> None:
        super().__init__()
        self.norm1 = kind.norm(inner)
        self.conv1 = kind.make.conv(inner, outer)
        self.norm2 = kind.norm(outer)
        self.conv2 = kind.make.conv(outer, outer)
        self.conv_shortcut = kind.make.conv(inner, outer, 1) if inner != outer else None

    def forward(self, x: Tensor, latents: Tensor | None) -> Tensor:
        hidden = self.conv1(functional.silu(_normed(self.norm1, x, latents)))
        hidden = self.conv2(functional.silu(_normed(self.norm2, hidden, latents)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nn.Module):
    """Attends among all pixels, in a single head of all channels. Its norm has another name in each half."""

    def __init__(self, channels: int, kind: _Kind) -> None:
        super().__init__()
        self.norm_name = "group_norm" if kind.latent is None else "spatial_norm"
        self.add_module(self.norm_name, kind.norm(channels))
        self.to_q = kind.make.linear(channels, channels)
        self.to_k = kind.make.linear(channels, channels)
        self.to_v = kind.make.linear(channels, channels)
        self.to_out = nn.ModuleList([kind.make.linear(channels, channels)])
        self.attend = vae_attention()

    def forward(self, x: Tensor, latents: Tensor | None) -> Tensor:
        normed = _normed(self.get_submodule(self.norm_name), x, latents)
        pixels = rearrange(normed, "b c h w -> b (h w) c")
        as_picture = "b (h w) c -> b c h w"
        parts = (rearrange(layer(pixels), as_picture, h=x.shape[2]) for layer in (self.to_q, self.to_k, self.to_v))
        out = rearrange(self.attend(*(part.contiguous() for part in parts)), "b c h w -> b (h w) c")
        return x + rearrange(self.to_out[0](out), as_picture, h=x.shape[2])


class _Level(nn.Module):
    """Resnets, each with an attention after it if the level attends, then its resizing, if it has one."""

    def __init__(self, inner: Sequence[int], outer: int, kind: _Kind, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(each, outer, kind) for each in inner)
        self.attentions = nn.ModuleList(_Attention(outer, kind) for _ in inner) if attends else None

    def layers(self, x: Tensor, latents: Tensor | None) -> Tensor:
        for number, resnet in enumerate(self.resnets):
            x = resnet(x, latents)
            if self.attentions is not None:
                x = self.attentions[number](x, latents)
        return x


class _Down(_Level):
    def __init__(self, inner: Sequence[int], outer: int, kind: _Kind, *, attends: bool, halves: bool) -> None:
        super().__init__(inner, outer, kind, attends)
        self.downsamplers = nn.ModuleList([_Halving(outer, kind.make)] if halves else [])

    def forward(self, x: Tensor, latents: Tensor | None) -> Tensor:
        x = self.layers(x, latents)
        for halving in self.downsamplers:
            x = halving(x)
        return x


class _Up(_Level):
    def __init__(self, inner: Sequence[int], outer: int, kind: _Kind, *, attends: bool, doubles: bool) -> None:
        super().__init__(inner, outer, kind, attends)
        self.upsamplers = nn.ModuleList([_Doubling(outer, kind.make)] if doubles else [])

    def forward(self, x: Tensor, latents: Tensor | None) -> Tensor:
        x = self.layers(x, latents)
        for doubling in self.upsamplers:
            x = doubling(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, kind: _Kind) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(channels, channels, kind) for _ in range(2))
        self.attentions = nn.ModuleList([_Attention(channels, kind)])

    def forward(self, x: Tensor, latents: Tensor | None) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, latents), latents)
        return self.resnets[1](x, latents)


class _Halving(nn.Module):
    def __init__(self, channels: int, make: Layers) -> None:
        super().__init__()
        self.conv = make.conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class _Doubling(nn.Module):
    def __init__(self, channels: int, make: Layers) -> None:
        super().__init__()
        self.conv = make.conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
