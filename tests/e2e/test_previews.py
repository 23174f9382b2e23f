"""Previews and the report through a real server, as a queue of graphs."""

from __future__ import annotations

import io
import json

import numpy as np
from demo import shapes
from harness.server import ComfyServer
from PIL import Image

from e2e import graphs

SAMPLER = {"width": 96, "height": 96, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "seed": 5}
PROMPT = "a red heart on a white background"


def test_previews_and_report(server: ComfyServer) -> None:
    shapes.write_dataset(server.base / "input" / "e2e_previews", "heart", 8, 96, 0)
    settings = {"learning_rate": 5e-3, "preserve": "circle", "rank": 8, "alpha": 8.0}
    graph = graphs.training("e2e_previews", "previews", steps=40, **settings)
    graph["data"]["inputs"] |= {"trigger": "heart", "resolution": 96}
    graph["shown"] = graphs.node(
        "LoraLoom_Previews", prompts=f"{PROMPT}\na ring on a black background", negative="", every=20, strength=1.0, **SAMPLER
    )  # fmt: skip
    graph["train"]["inputs"]["previews"] = ["shown", 0]
    graph["page"] = graphs.node("SaveImage", images=["train", 3], filename_prefix="e2e_previews")
    graph["report"] = graphs.node(
        "LoraLoom_Report", model=["unet", 0], clip=["clip", 0], vae=["vae", 0], adapter=["train", 2], dataset=["data", 0],
        trigger="", prompts=PROMPT, class_words="circle, square", neutral="", negative="", seeds=2, strength=1.0, **SAMPLER,
    )  # fmt: skip
    graph["sheet"] = graphs.node("SaveImage", images=["report", 1], filename_prefix="e2e_report")
    graph["text"] = graphs.node("PreviewAny", source=["report", 0])
    graph["figures"] = graphs.node("PreviewAny", source=["report", 2])
    outputs = server.run(graph, timeout=600)["outputs"]
    (folder,) = (server.base / "output" / "lora_loom").glob("previews-*")
    names = [path.name for path in sorted((folder / "previews").iterdir())]
    assert names == ["step_000000.png", "step_000020.png", "step_000040.png"]
    page = Image.open(io.BytesIO(server.view(outputs["page"]["images"][0]))).convert("RGB")
    assert (np.asarray(page) == np.asarray(Image.open(folder / "previews" / names[-1]))).all()
    figures = json.loads(outputs["figures"]["text"][0])
    assert figures["leakage"]["with the trigger"]["latent"] > figures["leakage"]["neutral"]["latent"] > 0
    assert len(figures["memorisation"]["samples"]) == 2
    assert "of the change with the trigger" in outputs["text"]["text"][0]
    assert Image.open(io.BytesIO(server.view(outputs["sheet"]["images"][0]))).width > 4 * 96
