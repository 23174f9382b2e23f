"""Names of unknown spellings: what is before a layer's own name does not count, and a doubtful name is not taken."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.families.loose_names import LooseNames, bare, is_text, numbered_slices

LAYER = "blocks.0.self_attn.q"
PREFIXES = (
    "", "base_model.model.", "base_model.model.model.", "base_model.model.diffusion_model.", "module.", "model.",
    "model.diffusion_model.", "diffusion_model.", "transformer.", "transformer.base_model.model.", "unet.",
    "_orig_mod.", "unet._orig_mod.", "module._orig_mod.base_model.model.", "_fsdp_wrapped_module.", "pipe.dit.",
)  # fmt: skip
FLAT = ("lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_", "lora_unet__orig_mod_")


@pytest.mark.parametrize("name", [
    *(prefix + LAYER for prefix in PREFIXES), *(prefix + LAYER.replace(".", "_") for prefix in FLAT),
    "blocks.0._orig_mod.self_attn.q", "lora_unet_blocks_0__orig_mod_self_attn_q",
])  # fmt: skip
def test_prefixes_do_not_count(name: str):
    assert bare(name) == "blocks_0_self_attn_q" and not is_text(name)


def test_a_part_of_a_pipeline_is_no_part_of_a_name():
    """Wan's `transformer.blocks` is not Anima's `transformer_blocks`."""
    assert bare("transformer.blocks.0.attn1.to_q") == "blocks_0_attn1_to_q"
    for name in ("transformer_blocks.0.attn1.to_q", "transformer.transformer_blocks.0.attn1.to_q",
                 "lora_unet_transformer_blocks_0_attn1_to_q"):  # fmt: skip
        assert bare(name) == "transformer_blocks_0_attn1_to_q"


def test_a_word_of_one_peer_is_that_of_another():
    """As diffusers reads them for FLUX.2, and writes them for Anima."""
    assert bare("diffusion_model.sformer_blocks.3.attn.to_q") == "transformer_blocks_3_attn_to_q"
    assert bare("text_conditioner.blocks.0.self_attn.q_proj") == "llm_adapter_blocks_0_self_attn_q_proj"


def names(network: list[str], text: list[str] = ()) -> LooseNames[str]:
    return LooseNames({name: name for name in network}, {name: name for name in text})


def test_a_flat_name_that_means_two_layers_is_not_taken():
    known = names(["a.b_c", "a_b.c", "d.e"])
    assert known.places(["lora_unet_d_e"], True) == {"lora_unet_d_e": "d.e"}
    assert known.places(["lora_unet_a_b_c", "lora_unet_d_e"], True) == {"lora_unet_d_e": "d.e"}


@pytest.mark.parametrize(("strangers", "vouched", "taken"), [(1, False, 19), (3, False, 0), (3, True, 19),
                                                             (19, True, 19), (20, True, 0)])  # fmt: skip
def test_most_names_must_agree(strangers: int, vouched: bool, taken: int):
    """Nearly all, or the half when the layers tell the family."""
    known = names([f"blocks.{number}.q" for number in range(19)])
    file = [f"module.blocks.{number}.q" for number in range(19)] + [f"module.other.{n}" for n in range(strangers)]
    assert len(known.places(file, vouched)) == taken


def test_a_name_that_the_network_shares_with_text_encoders_is_the_networks():
    """Where the file has one that is the network's alone."""
    own, shared, other = "layers.0.self_attention.to_q", "layers.0.mlp.up_proj", "layers.0.mlp.down_proj"
    inside = "llm.transformer.model."
    known = names([own, shared], [inside + shared, inside + other])
    assert known.places([own, shared, other], False) == {own: own, shared: shared, other: inside + other}
    assert known.of_text([own, shared, other]) == {other}
    assert known.places([shared, other], False) == {shared: inside + shared, other: inside + other}


CLIP, T5 = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"
TWO = [f"clip_l.transformer.{CLIP}", f"clip_g.transformer.{CLIP}", f"t5xxl.transformer.{T5}"]
INSIDE = CLIP.removeprefix("text_model.")


@pytest.mark.parametrize(("name", "encoder"), [
    (f"text_encoder.{CLIP}", "clip_l"), (f"text_encoder.{INSIDE}", "clip_l"), (f"text_encoder_2.{INSIDE}", "clip_g"),
    (f"text_encoder_2.base_model.model.{CLIP}", "clip_g"), (f"text_encoder_3.{T5}", "t5xxl"),
    (f"te1.{CLIP}", "clip_l"), (f"te2.{CLIP}", "clip_g"), (f"te1_{CLIP.replace('.', '_')}", "clip_l"),
    (f"lora_te2_{INSIDE.replace('.', '_')}", "clip_g"), (f"lora_te3_{T5.replace('.', '_')}", "t5xxl"),
    (f"clip_g.transformer.{CLIP}", "clip_g"), (f"text_encoders.clip_g.transformer.{INSIDE}", "clip_g"),
    (f"conditioner.embedders.0.transformer.{CLIP}", "clip_l"), (f"cond_stage_model.transformer.{CLIP}", "clip_l"),
    (f"base_model.model.{T5}", "t5xxl"), (f"text_encoder.{T5}", "t5xxl"),
    (f"base_model.model.{CLIP}", None), (f"text_encoder_4.{CLIP}", None), (f"te2.{CLIP}.and_more", None),
])  # fmt: skip
def test_text_encoders_go_by_number_name_or_what_only_one_has(name: str, encoder: str | None):
    """A number that no encoder has means none, and so does a name without a number that two have."""
    found = names([], TWO).places([name], False)
    assert is_text(name) and {place.partition(".")[0] for place in found.values()} == ({encoder} if encoder else set())


def test_the_only_text_encoder_needs_no_number_and_is_not_the_second():
    only = names([], TWO[:1])
    assert len(only.places([f"base_model.model.{CLIP}", INSIDE], False)) == 2
    assert not only.places([f"text_encoder_2.{CLIP}", f"lora_te2_{CLIP.replace('.', '_')}"], False)


@pytest.mark.parametrize("name", [
    "double_blocks.0.txt_attn.qkv", "text_embedding.0", "transformer.text_transformer_blocks.0.ff", "context_embedder",
    "lora_unet_text_embeddings_in_layer", "transformer_blocks.0.attn.to_q", "txtfusion.projector",
])  # fmt: skip
def test_layers_that_read_text_are_no_text_encoders(name: str):
    assert not is_text(name)


def test_slices_are_numbered_from_the_top():
    """The smallest partition: one slice of q, k and v together is passed over."""
    rows = [(0, 4), (4, 4), (0, 12), (8, 4), (12, 16)]
    found = numbered_slices([("linear1", each) for each in rows])
    assert found == {f"linear1.{n}": ("linear1", each) for n, each in enumerate([(0, 4), (4, 4), (8, 4), (12, 16)])}
