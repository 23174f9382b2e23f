"""The text encoder gives what that of diffusers' pipelines does: the normed last layer, its mask, what is pooled."""

from __future__ import annotations

import logging

import pytest
import torch
from harness.calls import encode, relative_error
from harness.comfyui import comfyui_path
from harness.kandinsky import System
from transformers import CLIPTokenizer

LONG = " ".join(["heart"] * 90)


@pytest.mark.parametrize("text", ["a red heart", "", LONG], ids=["words", "empty", "long"])
@torch.inference_mode()
def test_text_is_encoded_as_by_transformers(system: System, text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ((hidden, options),) = encode(system.clip, text)
    tokenizer = CLIPTokenizer.from_pretrained(comfyui_path() / "comfy" / "sd1_tokenizer")
    tokens = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    right = system.text(**tokens)
    assert relative_error(hidden, right.last_hidden_state) < 1e-5
    assert relative_error(options["pooled_output"], right.text_embeds) < 1e-5
    assert torch.equal(options["attention_mask"], tokens.attention_mask)
    assert ("what follows its first 75 tokens is left out" in caplog.text) == (text == LONG)


def test_its_layers_have_the_names_that_loras_of_comfyui_have(system: System) -> None:
    names = system.clip.cond_stage_model.state_dict()
    assert "clip_g.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight" in names
