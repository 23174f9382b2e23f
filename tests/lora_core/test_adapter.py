"""Figures of a whole adapter, against the dense corrections."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core import families
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank


def layer(seed: int, out: int, columns: int, rank: int, alpha: float, kernel=()) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for shape in ((rank, columns), (out, rank)))
    return LowRank(a, b, alpha, kernel)


def dense(item: LowRank) -> torch.Tensor:
    return item.lora_B.double() @ item.lora_A.double() * (item.alpha / item.lora_A.shape[0])


@pytest.fixture
def adapter() -> Adapter:
    layers = {"diffusion_model.b": layer(0, 6, 18, 2, 1.0, (3, 3)), "diffusion_model.a": layer(1, 5, 7, 4, 3.0),
              "text_encoders.c": layer(2, 8, 3, 1, 0.5)}  # fmt: skip
    return Adapter(layers, {"ss_output_name": "x"})


def test_energies_and_norm_are_those_of_the_dense_corrections(adapter):
    energies = adapter.energies()
    assert list(energies) == list(adapter.layers)
    for name, item in adapter.layers.items():
        assert energies[name] == pytest.approx(float(dense(item).square().sum()), rel=1e-12)
    together = torch.cat([dense(item).flatten() for item in adapter.layers.values()]).norm()
    assert adapter.norm() == pytest.approx(float(together), rel=1e-12)


def test_rank_and_parameters(adapter):
    assert adapter.rank() == 4
    assert adapter.num_parameters() == 2 * (6 + 18) + 4 * (5 + 7) + 1 * (8 + 3)


def test_an_adapter_without_layers_has_rank_and_norm_zero():
    empty = Adapter({})
    assert (empty.rank(), empty.num_parameters(), empty.norm(), empty.energies()) == (0, 0, 0.0, {})


@pytest.mark.parametrize("strength", [0.0, -1.0, 0.3])
def test_scaled_scales_every_layer_and_keeps_order_and_metadata(adapter, strength):
    scaled = adapter.scaled(strength)
    assert list(scaled.layers) == list(adapter.layers) and scaled.metadata == adapter.metadata
    for name, item in adapter.layers.items():
        torch.testing.assert_close(dense(scaled.layers[name]), strength * dense(item), rtol=1e-12, atol=0)
    assert scaled.norm() == pytest.approx(abs(strength) * adapter.norm(), rel=1e-12)


def test_map_changes_each_layer_alone(adapter):
    mapped = adapter.map(lambda item: item.truncate(1))
    assert mapped.rank() == 1 and adapter.rank() == 4 and list(mapped.layers) == list(adapter.layers)


# --- families ---


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"] * 3, "SD 1.5"),
        (["unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"], "SD 1.5"),
        (["lora_unet_double_blocks_0_img_attn_qkv", "transformer.single_transformer_blocks.3.attn.to_q"], "FLUX.1 dev"),
        (["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_11_cross_attn_o"], "Wan 2.1"),
        (["lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_v"], "SDXL"),
        (["lora_unet_joint_blocks_3_x_block_attn_qkv"], "SD 3.5"),
        (["transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj"] * 2, "FLUX.2"),
        (["lora_unet_transformer_blocks_59_attn_add_q_proj"], "Qwen-Image"),
        (["diffusion_model.layers.3.attention.qkv"], "Z-Image"),
        (["diffusion_model.blocks.3.attn.wq"], "Krea 2"),
        (["transformer.visual_transformer_blocks.3.cross_attention.to_query"], "Kandinsky 5"),
        (["diffusion_model.blocks.3.self_attn.q_proj", "diffusion_model.blocks.3.mlp.layer1"], "Anima"),
        (["down_blocks.2.4.attention.attn.to_q", "up_blocks.0.2.attention.attn.to_q"], "Stable Cascade B"),
        (["lora_prior_unet_down_blocks_0_2_attention_attn_to_q"], "Stable Cascade C"),
        (["something.else"], "an unknown family"),
        ([], "an unknown family"),
        (["diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q", "other", "another"], "SD 1.5"),
    ],
)
def test_a_family_is_guessed_from_the_telling_keys(names, family):
    assert families.guess_from_keys(names) == family


def test_a_class_with_a_row_and_one_without():
    assert families.for_config_class("Flux").name == "FLUX.1 dev"
    assert families.for_config_class("KOALA_700M").name == "SDXL", "a smaller SDXL"
    plain = families.for_config_class("NewModel")
    assert (plain.name, plain.timesteps, plain.shift, plain.guidance) == ("NewModel", "uniform", 1.0, None)
    assert plain.captions == "", "not known to be exact"
    assert families.guess_from_keys(["NewModel"]) == "an unknown family"


@pytest.mark.parametrize("name", ["CogVideoX_T2V", "CogVideoX_I2V"])
def test_what_would_learn_the_wrong_thing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} cannot be trained: "):
        families.check_trainable(name)


@pytest.mark.parametrize("name", ["SD15", "Stable_Cascade_B", "NewModel"])
def test_everything_else_may_be_trained(name):
    families.check_trainable(name)
