"""Files of Kandinsky 2.1, 3 and 5, as diffusers writes them, are told from those of 2.2."""

from __future__ import annotations

import pytest
from diffusers import Kandinsky3UNet, Kandinsky5Transformer3DModel, PriorTransformer, UNet2DConditionModel
from harness.parity import Shapes, at_real_size, made, shapes_of
from lora_loom.nodes.bridge.networks import kandinsky_decoder, kandinsky_prior, movq
from lora_loom.nodes.bridge.networks.kandinsky_decoder import KandinskyDecoder
from lora_loom.nodes.bridge.networks.kandinsky_others import unlike
from lora_loom.nodes.bridge.networks.kandinsky_prior import KandinskyPrior
from lora_loom.nodes.bridge.networks.movq import MoVQ
from tiny.kandinsky import DECODER, MOVQ, PRIOR

UNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), "block_out_channels": (64, 64),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "layers_per_block": 1, "out_channels": 8,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 32, "attention_head_dim": 64,
    "resnet_time_scale_shift": "scale_shift", "encoder_hid_dim": 64,
}  # fmt: skip


def unet(**changed: object) -> Shapes:
    return at_real_size(UNet2DConditionModel, **{**UNET, **changed})


OTHERS = {
    "the decoder of Kandinsky 2.1": lambda: unet(
        addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj"
    ),
    "the inpainting decoder of Kandinsky 2.2": lambda: unet(
        addition_embed_type="image", encoder_hid_dim_type="image_proj", in_channels=9
    ),
    "the ControlNet decoder of Kandinsky 2.2": lambda: unet(
        addition_embed_type="image_hint", encoder_hid_dim_type="image_proj", in_channels=8
    ),
    "the prior of Kandinsky 2.1": lambda: at_real_size(PriorTransformer, num_layers=1),
    "Kandinsky 3": lambda: at_real_size(
        Kandinsky3UNet, block_out_channels=(32, 64, 64, 64), layers_per_block=1, groups=16
    ),
    "Kandinsky 5": lambda: at_real_size(Kandinsky5Transformer3DModel, num_text_blocks=1, num_visual_blocks=1),
}


@pytest.mark.parametrize("told", OTHERS)
def test_it_is_told_by_its_name(told: str) -> None:
    shapes = OTHERS[told]()
    assert unlike(shapes) == told
    assert [each.config(shapes) for each in (kandinsky_prior, kandinsky_decoder, movq)] == [None] * 3


@pytest.mark.parametrize(("network", "sizes"), [(KandinskyPrior, PRIOR), (KandinskyDecoder, DECODER), (MoVQ, MOVQ)])
def test_those_of_2_2_are_not(network: type, sizes: dict) -> None:
    shapes = shapes_of(made(network, sizes))
    assert unlike(shapes) == "" and unlike({}) == ""
    assert sum(each.config(shapes) is not None for each in (kandinsky_prior, kandinsky_decoder, movq)) == 1
