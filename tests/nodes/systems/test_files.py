"""A file that a loader was given by mistake is named, with the node that loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folder_paths
import pytest
import torch
from harness.kandinsky import DECODER, System
from lora_loom.nodes.bridge.systems.coders import load_vae
from lora_loom.nodes.bridge.systems.loading import load_model
from lora_loom.nodes.bridge.systems.text import load_text_encoder
from safetensors.torch import save_file
from tiny import kandinsky

LOADERS = {"diffusion_models": load_model, "text_encoders": load_text_encoder, "vae": load_vae}


def marked(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1) for name in names}


def told(folder: str, weights: dict[str, torch.Tensor]) -> str:
    root = next(Path(each) for each in folder_paths.get_folder_paths(folder) if "kandinsky" in each)
    path = root / "given.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    try:
        with pytest.raises(ValueError) as caught:
            LOADERS[folder](path.name)
    finally:
        path.unlink()
    return str(caught.value)


MODEL = "not a prior or decoder of Kandinsky 2.2 or Wuerstchen v2"
WRONG: dict[str, tuple[str, Callable[[], dict[str, torch.Tensor]]]] = {
    "the prior of Kandinsky 2.1": (
        "choose another file", lambda: kandinsky.prior_weights({**kandinsky.PRIOR, "embed": 768}),
    ),
    "the decoder of Kandinsky 2.1": ("choose another file", lambda: marked("add_embedding.text_proj.weight")),
    "the inpainting decoder of Kandinsky 2.2": (
        "choose another file",
        lambda: kandinsky.decoder_weights(DECODER) | {"conv_in.weight": torch.zeros(64, 9, 3, 3)},
    ),
    "Kandinsky 5": ("", lambda: marked("visual_embeddings.in_layer.weight")),
    "stage C of Stable Cascade": (
        "load it with Load Diffusion Model", lambda: marked("clip_txt_mapper.weight", "clf.1.weight"),
    ),
    "MoVQ, the VAE of Kandinsky 2": ("load it with Load Kandinsky / Wuerstchen VAE", kandinsky.movq_weights),
    "a LoRA": ("load it with Load LoRA Stack", lambda: marked("unet.mid_block.attentions.0.to_q.lora_A.weight")),
    "a VAE of another model": ("load it with Load VAE", lambda: marked("decoder.conv_in.weight")),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("system")
def test_a_model_that_is_another_is_named(name: str) -> None:
    cure, weights = WRONG[name]
    said = told("diffusion_models", weights())
    assert said.startswith(f"given.safetensors is {name}, {MODEL}") and said.endswith(cure)


@pytest.mark.usefixtures("system")
def test_what_comfyui_knows_is_called_as_comfyui_does(tmp_path: Path) -> None:
    import tiny

    weights = {
        key.removeprefix("diffusion_model."): value
        for key, value in tiny.load("sd15", tmp_path).model.model.state_dict().items()
        if key.startswith("diffusion_model.")
    }
    assert "is a SD15 model, not a prior" in told("diffusion_models", weights)


@pytest.mark.usefixtures("system")
def test_what_nobody_knows_is_not_guessed() -> None:
    assert "nor anything else that is known here" in told("diffusion_models", marked("something.weight"))


def test_a_text_encoder_that_is_another_is_named(system: System) -> None:
    layer = "text_model.encoder.layers.0.mlp.fc1.weight"
    small = told("text_encoders", {layer: torch.zeros(3072, 768)})
    assert "is CLIP ViT-L (768 numbers a token), not a text encoder of Kandinsky 2.2 or Wuerstchen v2" in small
    assert "is a T5 text encoder, not" in told(
        "text_encoders", marked("encoder.block.0.layer.0.SelfAttention.q.weight")
    )
    prior = told("text_encoders", kandinsky.prior_weights())
    assert "is the prior of Kandinsky 2.2, not a text encoder" in prior and "Wuerstchen Model" in prior


@pytest.mark.usefixtures("system")
def test_a_vae_that_is_another_is_named() -> None:
    assert "is the decoder of Kandinsky 2.2, not a VAE of" in told("vae", kandinsky.decoder_weights(DECODER))
    assert "load it with Load VAE" in told("vae", marked("decoder.conv_in.weight"))
