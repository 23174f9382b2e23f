"""MoVQ has the weights of diffusers' VQModel, and encodes and decodes as Kandinsky's pipelines do with that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import VQModel
from harness.calls import relative_error
from harness.parity import STORED, at_real_size, made, shapes_of, stored_as, theirs
from lora_loom.nodes.bridge.networks.movq import MoVQ, config
from tiny.kandinsky import MOVQ, movq_weights
from torch import Tensor

REAL = {"channels": (128, 256, 256, 512), "layers": 2, "latent": 4, "codes": 16384}


def in_diffusers(channels: tuple[int, ...], layers: int, latent: int, codes: int) -> dict[str, Any]:
    """As in the published config.json."""
    more = len(channels) - 1
    return {
        "block_out_channels": channels, "layers_per_block": layers, "latent_channels": latent, "vq_embed_dim": latent,
        "down_block_types": ("DownEncoderBlock2D",) * more + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * more,
        "num_vq_embeddings": codes, "norm_type": "spatial",
    }  # fmt: skip


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def test_real_size() -> None:
    right = at_real_size(VQModel, **in_diffusers(**REAL))
    assert shapes_of(made(MoVQ, REAL)) == right
    assert shapes_of(made(MoVQ, {})) == right, "the sizes of the published file are the defaults"
    assert config(right) == REAL


def test_pictures_and_latents_are_those_of_diffusers() -> None:
    weights, pixels, latents = movq_weights(), drawn(2, 3, 32, 48).clamp(-1, 1), drawn(2, 4, 4, 6)
    judge, ours = theirs(VQModel, weights, **in_diffusers(**MOVQ)), made(MoVQ, MOVQ, weights)
    assert relative_error(ours.encode(pixels), judge.encode(pixels).latents) < 1e-5
    assert ours.encode(pixels).shape == latents.shape
    right = judge.decode(latents, force_not_quantize=True).sample
    assert right.shape == pixels.shape and relative_error(ours.decode(latents), right) < 1e-5
    assert relative_error(judge.decode(latents).sample, right) > 1e-2, "quantised latents give another picture"


def test_sizes_are_read_off_the_shapes() -> None:
    shapes = shapes_of(made(MoVQ, MOVQ))
    assert config(shapes) == MOVQ
    assert config({name: shape for name, shape in shapes.items() if "conv_norm_out.conv_y" not in name}) is None


@pytest.mark.parametrize("dtype", STORED.values(), ids=STORED)
def test_weights_are_cast_where_they_are_used(dtype: torch.dtype) -> None:
    stored, right = stored_as(MoVQ, MOVQ, movq_weights(), dtype)
    pixels, latents = drawn(1, 3, 16, 16), drawn(1, 4, 2, 2)
    assert torch.equal(stored.encode(pixels), right.encode(pixels))
    assert torch.equal(stored.decode(latents), right.decode(latents))
    assert relative_error(stored.decode(latents.bfloat16()).float(), right.decode(latents)) < 0.05
