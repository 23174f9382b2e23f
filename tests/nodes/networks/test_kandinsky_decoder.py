"""The decoder of Kandinsky 2.2 has the weights of diffusers' network, and gives what that gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from harness.calls import relative_error
from harness.parity import STORED, at_real_size, made, shapes_of, stored_as, theirs
from lora_loom.nodes.bridge.networks.kandinsky_decoder import KandinskyDecoder, config
from tiny.kandinsky import DECODER, EMBED, decoder_weights
from torch import Tensor

REAL = {"channels": (384, 768, 1152, 1536), "layers": 3, "context": 768, "embed": 1280, "tokens": 32}


def in_diffusers(channels: tuple[int, ...], layers: int, context: int, embed: int, tokens: int = 32) -> dict[str, Any]:
    """As in the published config.json; diffusers gives every picture 32 tokens."""
    more = len(channels) - 1
    return {
        "in_channels": 4, "out_channels": 8, "addition_embed_type": "image", "encoder_hid_dim_type": "image_proj",
        "down_block_types": ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * more,
        "up_block_types": ("SimpleCrossAttnUpBlock2D",) * more + ("ResnetUpsampleBlock2D",),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "block_out_channels": channels, "layers_per_block": layers,
        "encoder_hid_dim": embed, "cross_attention_dim": context, "attention_head_dim": 64,
        "resnet_time_scale_shift": "scale_shift",
    }  # fmt: skip


def inputs(height: int = 8, width: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    drawn = {"x": (2, 4, height, width), "y": (2, EMBED)}
    given = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in drawn.items()}
    return {**given, "timesteps": torch.tensor([3.0, 700.0])}


def test_real_size() -> None:
    right = at_real_size(UNet2DConditionModel, **in_diffusers(**REAL))
    assert shapes_of(made(KandinskyDecoder, REAL)) == right and len(right) == 724
    assert shapes_of(made(KandinskyDecoder, {})) == right, "the sizes of the published file are the defaults"
    assert config(right) == REAL


def test_output_is_that_of_diffusers() -> None:
    sizes = {**DECODER, "tokens": 32}
    weights, given = decoder_weights(sizes), inputs()
    judge = theirs(UNet2DConditionModel, weights, **in_diffusers(**sizes))
    right = judge(given["x"], given["timesteps"], None, added_cond_kwargs={"image_embeds": given["y"]}).sample
    out = made(KandinskyDecoder, sizes, weights)(**given)
    assert out.shape == given["x"].shape and relative_error(out, right[:, :4]) < 1e-5


def test_sizes_are_read_off_the_shapes() -> None:
    shapes = shapes_of(made(KandinskyDecoder, DECODER))
    assert config(shapes) == DECODER
    assert config({name: shape for name, shape in shapes.items() if "image_norm" not in name}) is None
    assert config({**shapes, "conv_in.weight": (64, 9, 3, 3)}) is None, "inpainting"


@pytest.mark.parametrize("dtype", STORED.values(), ids=STORED)
def test_weights_are_cast_where_they_are_used(dtype: torch.dtype) -> None:
    stored, right = stored_as(KandinskyDecoder, DECODER, decoder_weights(), dtype)
    given = inputs()
    assert torch.equal(stored(**given), right(**given))
    half = {name: value if name == "timesteps" else value.bfloat16() for name, value in given.items()}
    out = stored(**half)
    assert out.dtype == torch.bfloat16 and relative_error(out.float(), right(**given)) < 0.05


def test_gradients() -> None:
    decoder, given = made(KandinskyDecoder, DECODER, decoder_weights()).double(), inputs(4, 4, torch.float64)
    name = "up_blocks.0.attentions.0.add_v_proj.weight"
    layer = decoder.get_parameter(name)

    def moved(step: Tensor) -> Tensor:
        return torch.func.functional_call(decoder, {name: layer + step}, args=(), kwargs=given)

    step = torch.zeros_like(layer, requires_grad=True)
    assert torch.autograd.gradcheck(moved, step, fast_mode=True)


def test_what_it_refuses() -> None:
    decoder = made(KandinskyDecoder, DECODER, decoder_weights())
    with pytest.raises(ValueError, match="multiples of 4, 32 pixels of a picture, but this latent is 6 x 8"):
        decoder(**inputs(8, 6))
    with pytest.raises(ValueError, match="needs an image embedding"):
        decoder(**{**inputs(), "y": None})
