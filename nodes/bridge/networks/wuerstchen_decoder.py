"""The decoder of Wuerstchen v2 (stage B, arXiv 2306.00637): from a prior's latent and text to a latent of the VQGAN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.cascade.common import ResBlock, TimestepBlock
from torch import Tensor, nn

from .wuerstchen_blocks import HEAD, AttentionBlock, kinds, noise_embedding, norm

_PATCH = 2  # pixels of the latent to one of the network, each way, which no weight tells
_LEAST = 1e-3  # what the output is divided by is between this and 1 less this


class WuerstchenDecoder(nn.Module):
    """Predicts the noise in a latent. Its weights have the names of diffusers' WuerstchenDiffNeXt, published as such.

    It goes down through levels, each of half the size, and up again. `c_hidden` is the channels of each level, `blocks`
    how often its `level_config` is repeated: C is a convolution, T takes the noise level, A attends with `nhead` heads.
    `inject_effnet` says where convolutions take the prior's latent, of `effnet_embd` channels. `clip_embd` is the width
    of the text's tokens, `c_cond` that of both conditions inside, `c_r` that of the noise level. `operations` is one of
    comfy.ops; what else ComfyUI passes of a model's configuration is not used.
    """

    def __init__(
        self,
        *,
        c_in: int = 4,
        c_out: int = 4,
        c_r: int = 64,
        c_cond: int = 1024,
        c_hidden: Sequence[int] = (320, 640, 1280, 1280),
        nhead: Sequence[int] = (-1, 10, 20, 20),
        blocks: Sequence[int] = (4, 4, 14, 4),
        level_config: Sequence[str] = ("CT", "CTA", "CTA", "CTA"),
        inject_effnet: Sequence[bool] = (False, True, True, True),
        effnet_embd: int = 16,
        clip_embd: int = 1024,
        kernel_size: int = 3,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any,
        **_: Any,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        self.dtype, self.c_r = dtype, c_r
        self.clip_mapper = operations.Linear(clip_embd, c_cond, **place)
        self.seq_norm = operations.LayerNorm(c_cond, elementwise_affine=False, eps=1e-6, **place)
        self.effnet_mappers = nn.ModuleList(
            operations.Conv2d(effnet_embd, c_cond, kernel_size=1, **place) if injected else None
            for injected in (*inject_effnet, *reversed(inject_effnet))
        )
        self.embedding = nn.Sequential(
            nn.PixelUnshuffle(_PATCH),
            operations.Conv2d(c_in * _PATCH**2, c_hidden[0], kernel_size=1, **place),
            norm(c_hidden[0], operations, **place),
        )
        plan = _Plan(c_r, c_cond, kernel_size, operations, place)
        levels = [
            _Level(channels, heads, pattern * times, injected)
            for channels, heads, pattern, times, injected in zip(
                c_hidden, nhead, level_config, blocks, inject_effnet, strict=True
            )
        ]
        self.down_blocks = nn.ModuleList(
            plan.down(level, above) for above, level in zip([None, *levels], levels, strict=False)
        )
        self.up_blocks = nn.ModuleList(
            plan.up(level, above, level is not levels[-1])
            for above, level in reversed([*zip([None, *levels], levels, strict=False)])
        )
        self.clf = nn.Sequential(
            norm(c_hidden[0], operations, **place),
            operations.Conv2d(c_hidden[0], 2 * c_out * _PATCH**2, kernel_size=1, **place),
            nn.PixelShuffle(_PATCH),
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006, as ComfyUI's networks have it
        *,
        effnet: Tensor,
        **_: Any,
    ) -> Tensor:
        """Return the noise, shaped as `x`, in latents (batch, c_in, height, width).

        `timesteps` are noise levels (batch,) from 0 to 1, `context` is text (batch, tokens, clip_embd) and `effnet` the
        prior's latent (batch, effnet_embd, any, any) as its encoder makes it. Height and width are even.
        """
        given = _Given(
            noise_embedding(timesteps, self.c_r).to(x.dtype),
            self.seq_norm(self.clip_mapper(context)),
            effnet,
            transformer_options,
        )
        h, kept, mappers = self.embedding(x), [], iter(self.effnet_mappers)
        for level in self.down_blocks:
            h = _through(level, h, given, next(mappers))
            kept.append(h)
        for number, level in enumerate(self.up_blocks):
            joined = kept.pop()
            h = _through(level, h, given, next(mappers), joined if number else None)
        clean, scale = self.clf(h).chunk(2, dim=1)
        return (x - clean) / (scale.sigmoid() * (1 - 2 * _LEAST) + _LEAST)


@dataclass(frozen=True)
class _Level:
    channels: int
    heads: int
    kinds: str
    injected: bool


@dataclass(frozen=True)
class _Plan:
    """Makes the blocks of a level."""

    c_r: int
    c_cond: int
    kernel_size: int
    operations: Any
    place: dict[str, Any]

    def down(self, level: _Level, above: _Level | None) -> nn.ModuleList:
        resize = [] if above is None else [self._resize(self.operations.Conv2d, above, level)]
        return nn.ModuleList([*resize, *self._blocks(level, joined=0)])

    def up(self, level: _Level, above: _Level | None, is_joined: bool) -> nn.ModuleList:
        resize = [] if above is None else [self._resize(self.operations.ConvTranspose2d, level, above)]
        return nn.ModuleList([*self._blocks(level, level.channels if is_joined else 0), *resize])

    def _blocks(self, level: _Level, joined: int) -> list[nn.Module]:
        """`joined` channels of the way down come beside what the first block takes."""
        return [self._block(kind, level, joined if not number else 0) for number, kind in enumerate(level.kinds)]

    def _block(self, kind: str, level: _Level, joined: int) -> nn.Module:
        how = {"operations": self.operations, **self.place}
        if kind == "A":
            return AttentionBlock(level.channels, self.c_cond, level.heads, **how)
        if kind == "T":
            return TimestepBlock(level.channels, self.c_r, conds=[], **how)
        return ResBlock(level.channels, joined + level.injected * self.c_cond, self.kernel_size, **how)

    def _resize(self, layer: type[nn.Module], source: _Level, target: _Level) -> nn.Module:
        scaled = layer(source.channels, target.channels, kernel_size=2, stride=2, **self.place)
        return nn.Sequential(norm(source.channels, self.operations, **self.place), scaled)


@dataclass(frozen=True)
class _Given:
    """What blocks take besides the image."""

    noise: Tensor
    text: Tensor
    effnet: Tensor
    options: dict[str, Any]


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


def _resized(latent: Tensor, h: Tensor) -> Tensor:
    size = h.shape[-2:]
    scaled = nn.functional.interpolate(latent.float(), size=size, mode="bicubic", antialias=True, align_corners=True)
    return scaled.to(h.dtype)


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Return the keywords of WuerstchenDecoder for weights of these shapes by name; None if they are another network's.

    What no weight tells is as published: 64 channels to an attention head, 2 x 2 pixels of the latent taken as one.
    """
    needed = ("embedding.1.weight", "clip_mapper.weight", "clf.1.weight", "down_blocks.0.1.mapper.weight")
    effnet = [name for name in shapes if name.startswith("effnet_mappers.") and name.endswith(".weight")]
    if any(name not in shapes for name in needed) or not effnet:
        return None
    levels = [kinds(shapes, "down_blocks.0.")]
    while found := kinds(shapes, f"down_blocks.{len(levels)}."):
        levels.append(found.removeprefix("?"))
    if any("?" in level or "C" not in level for level in levels):
        return None
    blocks = [level.count("C") for level in levels]
    firsts = [int(number > 0) for number in range(len(levels))]
    depthwise = [shapes[f"down_blocks.{number}.{first}.depthwise.weight"] for number, first in enumerate(firsts)]
    c_hidden = [shape[0] for shape in depthwise]
    patches = shapes["embedding.1.weight"][1]
    return {
        "c_in": patches // _PATCH**2,
        "c_out": shapes["clf.1.weight"][0] // (2 * _PATCH**2),
        "c_r": shapes["down_blocks.0.1.mapper.weight"][1],
        "c_cond": shapes["clip_mapper.weight"][0],
        "c_hidden": c_hidden,
        "nhead": [width // HEAD if "A" in level else -1 for width, level in zip(c_hidden, levels, strict=True)],
        "blocks": blocks,
        "level_config": [level[: len(level) // times] for level, times in zip(levels, blocks, strict=True)],
        "inject_effnet": [f"effnet_mappers.{number}.weight" in shapes for number in range(len(levels))],
        "effnet_embd": shapes[effnet[0]][1],
        "clip_embd": shapes["clip_mapper.weight"][1],
        "kernel_size": depthwise[0][-1],
    }
