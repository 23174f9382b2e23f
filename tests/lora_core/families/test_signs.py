"""The family of a LoRA file: never a wrong one, and every one that it may be for."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.families.signs import guess, named

TWO = "Anima, Cosmos Predict2, LTX-Video or Kandinsky 2.2 prior"
FLUX_1 = "FLUX.1 dev, FLUX.1 schnell or Chroma"
CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def told(*names: str, **metadata: str) -> str:
    """By names alone."""
    return named(guess(dict.fromkeys(names, ()), metadata))


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"] * 3, "SD 1.5 or SD 2"),
        (["unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"], "SD 1.5, SD 2 or SDXL"),
        (["lora_unet_double_blocks_0_img_attn_qkv", "transformer.single_transformer_blocks.3.attn.to_q"],
         "FLUX.1 dev, FLUX.1 schnell or Chroma"),
        (["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_mod_lin"],
         "FLUX.1 dev or FLUX.1 schnell"),
        (["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_11_cross_attn_o"], "Wan 2.1"),
        (["lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_v"], "SDXL"),
        (["lora_unet_joint_blocks_3_x_block_attn_qkv"], "SD 3.5"),
        (["transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj"] * 2, "FLUX.2"),
        (["lora_unet_double_stream_modulation_img_lin", "lora_unet_double_blocks_0_img_attn_qkv"], "FLUX.2"),
        (["lora_unet_transformer_blocks_59_attn_add_q_proj"], "Qwen-Image"),
        (["transformer.transformer_blocks.37.attn.to_q"], "SD 3.5, Qwen-Image or Krea 2"),
        (["diffusion_model.layers.3.attention.qkv"], "Z-Image, Lumina 2 or Ideogram 4"),
        (["diffusion_model.layers.3.attention.qkv", "diffusion_model.layers.3.attention.out"], "Z-Image or Lumina 2"),
        (["diffusion_model.layers.3.attention.qkv", "diffusion_model.layers.3.attention.o"], "Ideogram 4"),
        (["diffusion_model.layers.34.attention.o"], "an unknown family"),
        (["transformer.double_stream_blocks.15.block.attn1.to_q_t"], "HiDream I1"),
        (["lycoris_single_stream_blocks_31_block_ff_i_shared_experts_w1"], "HiDream I1"),
        (["diffusion_model.double_stream_blocks.16.block.attn1.to_q"], "an unknown family"),
        (["diffusion_model.blocks.3.attn.wq"], "Krea 2"),
        (["transformer.layers.35.self_attention.to_q", "transformer.layers.0.mlp.linear_fc2"], "Ernie-Image"),
        (["layers.3.self_attention.to_out.0", "layers.3.mlp.up_proj"], "Ernie-Image"),
        (["diffusion_model.layers.36.self_attention.to_q"], "an unknown family"),
        (["diffusion_model.transformer_blocks.3.attn.to_q"], "Qwen-Image or Krea 2"),
        (["diffusion_model.transformer_blocks.3.attn.to_q", "diffusion_model.transformer_blocks.3.ff.up"], "Krea 2"),
        (["transformer.visual_transformer_blocks.3.cross_attention.to_query"], "Kandinsky 5"),
        (["diffusion_model.blocks.3.self_attn.q_proj", "diffusion_model.blocks.3.mlp.layer1"],
         "Anima or Cosmos Predict2"),
        (["lora_unet_blocks_3_self_attn_q_proj", "lora_unet_llm_adapter_blocks_0_self_attn_q_proj"], "Anima"),
        (["transformer.blocks.0.attn1.to_q", "transformer.blocks.0.ffn.net.2"], "Wan 2.1"),
        (["transformer.transformer_blocks.0.attn1.to_q"], TWO),
        (["transformer.layers.0.attn.to_q"], "Lumina 2 or OmniGen2"),
        (["down_blocks.2.4.attention.attn.to_q", "up_blocks.0.2.attention.attn.to_q"], "Stable Cascade B"),
        (["lora_prior_unet_down_blocks_0_2_attention_attn_to_q"], "Stable Cascade C"),
        (["base_model.model.transformer_blocks.0.attn1.to_q"] * 2, TWO),
        (["diffusion_model.transformer_blocks.0.attn1.to_q"], TWO),
        (["lora_unet_blocks_0_attn1_to_q"], "Wan 2.1"), (["base_model.model.blocks.0.self_attn.q"], "Wan 2.1"),
        (["text_conditioner.blocks.0.self_attn.q_proj"], "Anima"),
        (["module.transformer_blocks.0.attn.to_q", "module.single_transformer_blocks.0.attn.to_q"], FLUX_1),
        (["text_encoder.encoder.layers.0.self_attn.k_proj"], "an unknown family"),
        (["lora_te_text_model_encoder_layers_0_self_attn_k_proj", "diffusion_model.blocks.0.attn.wq"], "Krea 2"),
        (["prior.transformer_blocks.0.attn1.to_q"], "Kandinsky 2.2 prior"),
        (["transformer.transformer_blocks.0.attn1.to_q", "transformer.transformer_blocks.0.attn2.to_q"],
         "Anima, Cosmos Predict2 or LTX-Video"),
        (["unet.down_blocks.1.attentions.0.add_k_proj"], "Kandinsky 2.2 decoder"),
        (["lora_unet_mid_block_attentions_0_to_q"], "Kandinsky 2.2 decoder"),
        (["up_blocks.2.attentions.3.processor.to_out"], "Kandinsky 2.2 decoder"),
        (["lora_prior_unet_blocks_2_attention_to_q"] * 2, "Wuerstchen v2 prior"),
        (["lora_prior_prior_blocks_95_attention_to_out_0"], "Wuerstchen v2 prior"),
        (["diffusion_model.blocks.2.attention.to_q"], "Wuerstchen v2 prior"),
        (["prior.blocks.2.attention.to_q", "prior.blocks.2.kv_mapper.1"], "Wuerstchen v2 prior"),
        (["something.else"], "an unknown family"), ([], "an unknown family"),
    ],
)  # fmt: skip
def test_names(names: list[str], family: str):
    assert told(*names) == family


@pytest.mark.parametrize(
    ("layers", "family"),
    [
        ({CROSS: (640, 768)}, "SD 1.5"), ({CROSS: (640, 1024)}, "SD 2"), ({CROSS: (640, 2048)}, "SDXL"),
        ({"diffusion_model.single_blocks.19.linear1": (21504, 3072)}, FLUX_1),
        ({"diffusion_model.single_blocks.19.linear1": (27648, 3072)}, "FLUX.2"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (12288, 4096)}, "FLUX.2"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072)}, f"{FLUX_1.replace(' or ', ', ')} or FLUX.2"),
        ({"lora_unet_double_blocks_18_img_attn_qkv": (9216, 3072)}, FLUX_1),
        ({"lora_unet_double_blocks_19_img_attn_qkv": (9216, 3072)}, "an unknown family"),  # HunyuanVideo
        ({"lora_unet_double_blocks_4_img_mlp_0": (18432, 3072)}, "FLUX.2"),
        ({"diffusion_model.layers.3.attention.qkv": (11520, 3840)}, "Z-Image"),
        ({"diffusion_model.layers.3.attention.qkv": (3840, 2304)}, "Lumina 2"),
        ({"transformer.layers.3.attention.to_k": (768, 2304)}, "Lumina 2"),
        ({"transformer.layers.3.attention.to_q": (3840, 3840)}, "Z-Image"),
        ({"transformer.layers.3.attention.to_q": (4608, 4608)}, "Ideogram 4"),
        ({"transformer.transformer_blocks.7.attn.to_q": (1536, 1536)}, "SD 3.5"),
        ({"diffusion_model.transformer_blocks.3.attn.to_q": (6144, 6144)}, "Krea 2"),
        ({"transformer.transformer_blocks.37.attn.to_q": (3072, 3072)}, "Qwen-Image"),
    ],
)  # fmt: skip
def test_shapes(layers: dict[str, tuple[int, ...]], family: str):
    assert named(guess(layers, {})) == family


@pytest.mark.parametrize(
    ("spelling", "family"),
    [
        ({"modelspec.architecture": "flux-1-dev/lora", "ss_base_model_version": "flux1"}, "FLUX.1 dev"),
        ({"modelspec.architecture": "flux-1-schnell/lora", "ss_base_model_version": "flux1"}, "FLUX.1 schnell"),
        ({"ss_base_model_version": "flux1"}, "FLUX.1 dev or FLUX.1 schnell"),
        ({"ss_base_model_version": "chroma"}, "Chroma"), ({"ss_base_model_version": "flux2_klein_4b"}, "FLUX.2"),
        ({"modelspec.architecture": "Flux.2-klein-4b/lora"}, "FLUX.2"),
        ({"ss_base_model_version": "qwen_image"}, f"{FLUX_1.replace(' or ', ', ')} or FLUX.2"),
    ],
)  # fmt: skip
def test_the_header_decides_among_what_the_layers_allow(spelling: dict[str, str], family: str):
    assert named(guess({"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072)}, spelling)) == family


def test_the_header_of_ltx_video_decides():
    said = {"modelspec.architecture": "lightricks-ltx-video/lora"}
    assert told("diffusion_model.transformer_blocks.0.attn1.to_q", **said) == "LTX-Video"


def test_the_header_of_a_file_with_unknown_layers():
    assert told("something.else", ss_base_model_version="krea2") == "Krea 2"


def test_the_header_does_not_overrule_the_layers():
    assert told("diffusion_model.blocks.3.attn.wq", ss_base_model_version="sd_v1") == "Krea 2"
