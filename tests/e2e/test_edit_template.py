"""The template of edit LoRAs runs through a real server, on a small FLUX.1 that reads the demo's words."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import tiny
from demo import shapes
from demo.templates import EDIT, LOADERS, WORKFLOWS
from harness.server import ComfyServer
from harness.workflow_api import workflow_to_api
from lora_loom.lora_core.files import guard
from PIL import Image, ImageOps
from tiny.families import FAMILIES
from tiny.vae import make_vae

WIDTH = 768  # of the demo's words


def test_it_trains_on_references_and_shows_them(server: ComfyServer) -> None:
    models, folder, row = server.base / "models", server.base / "input" / "edits", FAMILIES["flux1"]
    small = replace(row, name="edits", unet=row.unet | {"context_in_dim": WIDTH, "vec_in_dim": WIDTH})
    for name in ("diffusion_models", "vae"):
        (models / name).mkdir(exist_ok=True)
    tiny.write_model(small, models / "diffusion_models")
    make_vae(row.latent, models / "vae")
    shapes.write_dataset(folder, "heart", 4, 96, 0)
    (folder / "control").mkdir()
    for path in [*folder.glob("*.png"), *folder.glob("*.jpg")]:
        with Image.open(path) as picture:
            ImageOps.grayscale(picture).save(folder / "control" / path.name)
    workflow = json.loads((WORKFLOWS / f"{EDIT}.json").read_text(encoding="utf-8"))
    graph = workflow_to_api(workflow, server.object_info)
    for node in graph.values():
        kind, inputs = node["class_type"], node["inputs"]
        inputs |= LOADERS.get(kind, {})
        inputs |= {"unet_name": "edits.safetensors"} if kind == "UNETLoader" else {}
        inputs |= {"vae_name": "vae_16.safetensors"} if kind == "VAELoader" else {}
        inputs |= {"folder": "edits", "resolution": 96, "bucket_step": 16} if kind == "LoraLoom_Dataset" else {}
        inputs |= {"steps": 2} if kind == "LoraLoom_TrainLora" else {}
        inputs |= {"steps": 1, "cfg": 1.0} if kind == "LoraLoom_Previews" else {}
        inputs |= {"name": "edits"} if kind == "LoraLoom_SaveLora" else {}
    outputs = server.run(graph)["outputs"]
    told = {graph[key]["class_type"]: output for key, output in outputs.items()}
    assert "references: 1 for each of all pictures" in json.dumps(told["LoraLoom_Dataset"])
    (image,) = told["PreviewImage"]["images"]
    sheet = Image.open(io.BytesIO(server.view(image)))
    assert sheet.width > 3 * 64, "base, LoRA and the reference"
    assert guard.inspect(models / "loras" / "edits.safetensors").metadata["ss_steps"]
