"""The templates of Kandinsky 2.2 and Wuerstchen v2 draw a picture through a real server, with and without LoRAs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny.clip
import torch
from demo.templates import KANDINSKY, WORKFLOWS, WUERSTCHEN
from harness import kandinsky
from harness.server import ComfyServer, Graph
from harness.workflow_api import workflow_to_api
from PIL import Image
from safetensors.torch import save_file
from tiny import wuerstchen
from torch import Tensor

FOLDER = "two_stages"
LAYERS = {KANDINSKY: "transformer_blocks.0.attn1.to_v", WUERSTCHEN: "blocks.2.attention.to_v"}


def put(path: Path, weights: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> None:
    """Tiny networks under the names that the templates have, and a LoRA for the prior of each system."""
    models, text = server.base / "models", tiny.clip.text()
    kandinsky.write_files(models, text)
    for name, place in {
        "kandinsky_prior": "diffusion_models/kandinsky22_prior", "movq": "vae/kandinsky22_movq",
        "kandinsky_decoder": "diffusion_models/kandinsky22_decoder", "kandinsky_text": "text_encoders/kandinsky22_text",
    }.items():  # fmt: skip
        target = models / f"{place}.safetensors"
        target.with_name(f"{name}.safetensors").rename(target)
    for place, weights in {
        "diffusion_models/wuerstchen_prior": wuerstchen.prior_weights(), "vae/wuerstchen_vqgan": wuerstchen.vqgan_weights(),
        "diffusion_models/wuerstchen_decoder": wuerstchen.decoder_weights(),
        "text_encoders/wuerstchen_prior_text": text.state_dict(), "text_encoders/wuerstchen_text": text.state_dict(),
    }.items():  # fmt: skip
        put(models / f"{place}.safetensors", dict(weights))
    draw = torch.Generator().manual_seed(0)
    for name, layer in LAYERS.items():
        factors = {
            f"lora_{side}": torch.randn(shape, generator=draw) / 4 for side, shape in (("A", (4, 128)), ("B", (128, 4)))
        }
        lora = {f"diffusion_model.{layer}.{side}.weight": value for side, value in factors.items()}
        put(models / "loras" / FOLDER / f"{name.split()[0]}.safetensors", lora)


def graph_of(server: ComfyServer, name: str) -> Graph:
    """The template at 64 x 64 pixels, in two steps each."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    graph = workflow_to_api(workflow, server.object_info)
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"] |= {"steps": 2, "seed": 5}
        if node["class_type"] == "LoraLoom_EmptyTwoStageLatent":
            node["inputs"] |= {"width": 64, "height": 64}
    return graph


def drawn(server: ComfyServer, graph: Graph) -> np.ndarray:
    outputs = server.run(graph)["outputs"].values()
    (image,) = [picture for output in outputs for picture in output.get("images", [])]
    return np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"), dtype=np.float32)


@pytest.mark.parametrize("name", [KANDINSKY, WUERSTCHEN])
def test_template_draws_with_and_without_a_lora(server: ComfyServer, files: None, name: str) -> None:
    graph = graph_of(server, name)
    plain = drawn(server, graph)
    assert plain.shape == (64, 64, 3) and plain.std() > 1
    (prior,) = [
        key for key, node in graph.items() if node["inputs"].get("model_name", "").endswith("_prior.safetensors")
    ]
    (stack,) = [
        node
        for node in graph.values()
        if node["class_type"] == "LoraLoom_LoadLoraStack" and node["inputs"]["model"][0] == prior
    ]
    stack["inputs"]["rows"] = f"<lora:{FOLDER}/{name.split()[0]}:1>"
    changed = drawn(server, graph)
    assert np.abs(changed - plain).max() > 2, "the LoRA of the prior is seen in the picture"
