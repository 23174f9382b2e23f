"""A LoRA on model and text encoder of an SD 1.5 layout, through a real server: trained, saved, stacked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from demo import demo_base, shapes
from harness.server import ComfyServer
from PIL import Image
from safetensors.torch import load_file
from tiny.vae import make_vae

from e2e import graphs

NAME = "text"


@pytest.fixture(scope="module")
def base(server: ComfyServer) -> graphs.Graph:
    """Loaders of a tiny SD 1.5 with a CLIP-L of full size, whose attention hears something."""
    models, row = server.base / "models", tiny.FAMILIES["sd15"]
    for name in ("diffusion_models", "vae", "text_encoders"):
        (models / name).mkdir(parents=True, exist_ok=True)
    network = tiny.write_model(row, models / "diffusion_models")
    make_vae(row.latent, models / "vae")
    words, width = demo_base.new_words(), demo_base.WIDTH
    numbers = torch.randn(2 * width, generator=torch.Generator().manual_seed(0)).mul(0.03).half()
    heard = {key: numbers.as_strided((width, width), (1, 1)) for key in words if key.endswith("_proj.weight")}
    torch.save(words | heard, models / "text_encoders" / "e2e_clip_l.pt")
    shapes.write_dataset(server.base / "input" / "e2e_text", "heart", 3, 64, 0)
    return {
        "unet": graphs.node("UNETLoader", unet_name=network.name, weight_dtype="default"),
        "clip": graphs.node("CLIPLoader", clip_name="e2e_clip_l.pt", type="stable_diffusion"),
        "vae": graphs.node("VAELoader", vae_name=f"vae_{row.latent.channels}.safetensors"),
    }


def test_text_encoder_is_trained_saved_and_stacked(server: ComfyServer, base: graphs.Graph) -> None:
    graph = {**graphs.training("e2e_text", NAME, steps=2, text_rank=3, text_learning_rate=0.05), **base}
    graph["save"]["inputs"] |= {"clip": ["clip", 0], "format": "kohya"}
    server.run(graph)
    saved = load_file(server.base / "models" / "loras" / graphs.FOLDER / f"{NAME}.safetensors")
    text = {name: tensor for name, tensor in saved.items() if name.startswith("lora_te_text_model_encoder_layers_")}
    assert len(text) == 12 * 4 * 3 and len(saved) > len(text)
    assert all(tensor.any() for name, tensor in text.items() if "_v_proj.lora_up" in name)
    without, with_text = (picture(server, base, strength) for strength in (0.0, 1.0))
    assert np.abs(with_text - without).max() > 2, "the trained text encoder is seen"


def picture(server: ComfyServer, base: graphs.Graph, text_strength: float) -> np.ndarray:
    row = {
        "lora_1": str(Path(graphs.FOLDER) / f"{NAME}.safetensors"),
        "strength_1": 0.0,
        "text_strength_1": text_strength,
    }
    stack = graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], clip=["clip", 0], **row)
    graph = {**base, "stack": stack, **graphs.picture(["stack", 0], ["stack", 1], "a red heart")}
    image = server.run(graph)["outputs"]["picture"]["images"][0]
    return np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"), dtype=np.float32)
