"""The decoder of Wuerstchen v2 (stage B, arXiv 2306.00637): from the prior's latent and text to one of the VQGAN.

Weights have the names of the published file, that of diffusers' WuerstchenDiffNeXt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from comfy.ldm.cascade.common import ResBlock, TimestepBlock
from torch import Tensor, nn
from torch.nn import functional

from .parts import Layers, Options, Shapes, numbered
from .wuerstchen_blocks import AttentionBlock, kinds, noise_embedding, norm

_SIGNS = ("embedding.1.weight", "clip_mapper.weight", "clf.1.weight", "down_blocks.0.1.mapper.weight")
_PATCH = 2  # pixels of the latent to one of the network, each way; no weight tells it, and the published file has it
_LEAST = 1e-3  # what the noise is divided by is between this and 1 less this


def config(shapes: Shapes) -> dict[str, Any] | None:
    """Return the keywords of `WuerstchenDecoder` for a file with these weights, None for one of another network."""
    levels = [kinds(shapes, f"down_blocks.{number}.") for number in range(numbered(shapes, "down_blocks."))]
    levels = [level.removeprefix("?") for level in levels]  # what halves the image
    if not all(name in shapes for name in _SIGNS) or any("?" in level or "C" not in level for level in levels):
        return None
    effnet = [shapes.get(f"effnet_mappers.{number}.weight") for number in range(len(levels))]
    if not any(effnet):
        return None
    widths = [shapes[f"down_blocks.{number}.{min(number, 1)}.depthwise.weight"] for number in range(len(levels))]
    c_cond, clip_embd = shapes["clip_mapper.weight"]
    return {
        "c_in": shapes["embedding.1.weight"][1] // _PATCH**2,
        "c_out": shapes["clf.1.weight"][0] // (2 * _PATCH**2),
        "c_r": shapes["down_blocks.0.1.mapper.weight"][1],
        "c_cond": c_cond,
        "c_hidden": [width for width, *_ in widths],
        "blocks": [level.count("C") for level in levels],
        "level_config": [level[: len(level) // level.count("C")] for level in levels],
        "inject_effnet": [shape is not None for shape in effnet],
        "effnet_embd": next(shape[1] for shape in effnet if shape),
        "clip_embd": clip_embd,
        "kernel_size": widths[0][-1],
    }


class WuerstchenDecoder(nn.Module):
    """Predicts the noise in a latent. It goes down through levels, each of half the size, and up again.

    `c_hidden` channels of each level, whose `level_config` is repeated `blocks` times: C is a convolution, T takes the
    noise level, A attends to the text. `inject_effnet` says in which levels the convolutions take the prior's latent,
    of `effnet_embd` channels. `clip_embd` numbers in a token of text, `c_cond` in either condition inside and `c_r` for
    a noise level.
    """

    def __init__(
        self,
        *,
        c_in: int = 4,
        c_out: int = 4,
        c_r: int = 64,
        c_cond: int = 1024,
        c_hidden: Sequence[int] = (320, 640, 1280, 1280),
        blocks: Sequence[int] = (4, 4, 14, 4),
        level_config: Sequence[str] = ("CT", "CTA", "CTA", "CTA"),
        inject_effnet: Sequence[bool] = (False, True, True, True),
        effnet_embd: int = 16,
        clip_embd: int = 1024,
        kernel_size: int = 3,
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any,
    ) -> None:
        super().__init__()
        self.dtype, self.c_r = dtype, c_r
        layers = Layers(operations, dtype, device)
        self.clip_mapper = layers.linear(clip_embd, c_cond)
        self.seq_norm = operations.LayerNorm(c_cond, elementwise_affine=False, eps=1e-6)
        injections = enumerate((*inject_effnet, *reversed(inject_effnet)))  # down, and up
        self.effnet_mappers = nn.ModuleDict(
            {str(place): layers.conv(effnet_embd, c_cond, size=1) for place, injected in injections if injected}
        )
        self.embedding = nn.Sequential(
            nn.PixelUnshuffle(_PATCH), layers.conv(c_in * _PATCH**2, c_hidden[0], size=1), norm(c_hidden[0], layers)
        )
        plan = _Plan(layers, c_r, c_cond, kernel_size, c_hidden)
        orders = [pattern * times for pattern, times in zip(level_config, blocks, strict=True)]
        levels = [*enumerate(zip(orders, inject_effnet, strict=True))]
        self.down_blocks = nn.ModuleList(plan.down(number, *level) for number, level in levels)
        self.up_blocks = nn.ModuleList(plan.up(number, *level) for number, level in reversed(levels))
        self.clf = nn.Sequential(
            norm(c_hidden[0], layers), layers.conv(c_hidden[0], 2 * c_out * _PATCH**2, size=1), nn.PixelShuffle(_PATCH)
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        transformer_options: Options | None = None,
        *,
        effnet: Tensor,
        **_: Any,
    ) -> Tensor:
        """Return the noise, shaped as `x`, in latents (batch, c_in, height, width).

        `timesteps` (batch,) are noise levels from 0 to 1. `context` (batch, tokens, clip_embd) is CLIP's last hidden
        state after its final norm, `effnet` (batch, effnet_embd, any, any) a latent as the prior's encoder makes it.
        Raises ValueError for a latent that cannot be halved as often as there are levels.
        """
        self._check(*x.shape[-2:])
        noise, text = noise_embedding(timesteps, self.c_r).to(x.dtype), self.seq_norm(self.clip_mapper(context))
        given = _Given(noise, text, effnet, transformer_options or {})
        h, kept, mappers = self.embedding(x), [], dict(self.effnet_mappers.items())
        for place, level in enumerate(self.down_blocks):
            kept.append(h := _through(level, h, given, mappers.get(str(place))))
        kept[-1] = None  # the lowest level goes on with it
        for place, level in enumerate(self.up_blocks, len(kept)):
            h = _through(level, h, given, mappers.get(str(place)), kept.pop())
        clean, scale = self.clf(h).chunk(2, dim=1)
        return (x - clean) / (scale.sigmoid() * (1 - 2 * _LEAST) + _LEAST)

    def _check(self, height: int, width: int) -> None:
        step = _PATCH * 2 ** (len(self.down_blocks) - 1)
        if height % step or width % step:
            raise ValueError(
                f"Wuerstchen works on latents whose sides are multiples of {step}, {4 * step} pixels of a picture, but "
                f"this latent is {width} x {height}; choose another size"
            )


class _Plan(NamedTuple):
    """Makes the levels. `order` is the kinds of a level's blocks, one letter each."""

    layers: Layers
    c_r: int
    c_cond: int
    kernel_size: int
    c_hidden: Sequence[int]

    def down(self, number: int, order: str, injected: bool) -> nn.ModuleList:
        halved = [self._resize(self.layers.operations.Conv2d, number - 1, number)] if number else []
        return nn.ModuleList([*halved, *(self._block(kind, number, injected * self.c_cond) for kind in order)])

    def up(self, number: int, order: str, injected: bool) -> nn.ModuleList:
        """The first block also takes what the way down ended this level with, but at the lowest one."""
        beside = injected * self.c_cond
        joined = beside + (self.c_hidden[number] if number < len(self.c_hidden) - 1 else 0)
        blocks = [self._block(kind, number, beside if place else joined) for place, kind in enumerate(order)]
        doubled = [self._resize(self.layers.operations.ConvTranspose2d, number, number - 1)] if number else []
        return nn.ModuleList([*blocks, *doubled])

    def _block(self, kind: str, number: int, beside: int) -> nn.Module:
        channels = self.c_hidden[number]
        if kind == "A":
            return AttentionBlock(channels, self.c_cond, self.layers)
        if kind == "T":
            return TimestepBlock(channels, self.c_r, conds=[], **self.layers._asdict())
        return ResBlock(channels, beside, self.kernel_size, **self.layers._asdict())

    def _resize(self, layer: type[nn.Module], source: int, target: int) -> nn.Module:
        _, dtype, device = self.layers
        width = self.c_hidden[source]
        scaled = layer(width, self.c_hidden[target], kernel_size=2, stride=2, dtype=dtype, device=device)
        return nn.Sequential(norm(width, self.layers), scaled)


class _Given(NamedTuple):
    """Holds what blocks take besides the image."""

    noise: Tensor
    text: Tensor
    effnet: Tensor
    options: Options


def _through(
    level: nn.Module, h: Tensor, given: _Given, mapper: nn.Module | None, joined: Tensor | None = None
) -> Tensor:
    """The image after a level. Each convolution takes the prior's latent, and the first one also what is `joined`."""
    injected = None
    for block in level.children():
        if isinstance(block, AttentionBlock):
            h = block(h, given.text, given.options)
        elif isinstance(block, TimestepBlock):
            h = block(h, given.noise)
        elif isinstance(block, ResBlock):
            if injected is None and mapper is not None:
                injected = mapper(_resized(given.effnet, h))
            beside = [each for each in (joined, injected) if each is not None]
            h, joined = block(h, torch.cat(beside, dim=1) if beside else None), None
        else:
            h = block(h)
    return h


def _resized(latent: Tensor, image: Tensor) -> Tensor:
    size = image.shape[-2:]
    scaled = functional.interpolate(latent.float(), size=size, mode="bicubic", antialias=True, align_corners=True)
    return scaled.to(image.dtype)
