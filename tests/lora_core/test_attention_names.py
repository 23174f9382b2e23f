"""One table of the names in attentions: what is trained as attention is what is measured as one."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.analysis.parts import parts_of
from lora_loom.lora_core.attention_names import LEAVES, leaf
from lora_loom.lora_core.training.targets import in_preset

HOMES = ["attn", "attn1", "attn2", "attention", "self_attn", "cross_attn", "img_attn", "x_block.attn"]


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("role", LEAVES)
def test_every_name_is_trained_and_has_its_role(role: str, home: str) -> None:
    for name in LEAVES[role]:
        layer = f"diffusion_model.blocks.3.{home}.{name}"
        assert in_preset("attention", layer, "linear"), layer
        shape = (48, 16) if role == "qkv" else (16, 16)
        assert [part.role for part in parts_of(layer, shape)] == (list("qkv") if role == "qkv" else [role]), layer


@pytest.mark.parametrize("name", ["to_qk", "norm_q", "gate", "to_out.1", "proj.0", "qkv.norm"])
def test_other_names_are_not(name: str) -> None:
    layer = f"diffusion_model.blocks.3.attn.{name}"
    assert not in_preset("attention", layer, "linear")
    assert [part.role for part in parts_of(layer, (16, 16))] == [""]


def test_layers_that_attention_and_feed_forward_share() -> None:
    layers = [f"diffusion_model.single_blocks.7.linear{number}" for number in (1, 2)]
    assert all(in_preset("attention", layer, "linear") for layer in layers)
    roles = [[part.role for part in parts_of(layer, s)] for layer, s in zip(layers, ((28, 4), (4, 20)), strict=True)]
    assert roles == [["q", "k", "v", ""], ["o", ""]]


def test_no_name_has_two_roles() -> None:
    names = [name for role in LEAVES for name in LEAVES[role]]
    assert len(set(names)) == len(names) and leaf().count("|") == len(names) - 1
