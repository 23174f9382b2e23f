"""The shipped templates with what the demo has in place of what people have: models, pictures, prompts, sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2e.template_graphs import GRAPHS
from e2e.template_nodes import Node
from harness.server import ComfyServer, Graph
from harness.workflow_api import workflow_to_api

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
TRAIN_CHECKPOINT, TRAIN, STACK, MERGE, JUDGE, PUBLISH, KANDINSKY, WUERSTCHEN, *_ = GRAPHS
PREFERENCE = "Train a preference LoRA, DPO - liked, disliked pictures"
REGIONS = "LoRA regions - a mask for each LoRA"
EDIT = "Train an edit LoRA - FLUX.2, Kontext, Qwen-Image-Edit"
TRAIN_DISTILLED = "Train a LoRA on a distilled model - Turbo, schnell"
HEALTH = "Repair a LoRA - health, block weights"
SLIDER = "Train a slider LoRA - prompts, no pictures"
FILES = "LoRA files - format, resize, passport"
CONCEPTS = "Train a LoRA of several concepts - kept apart"

FOLDER = "lora_loom_demo"  # of the pictures in input/, and of the files in models/loras/
PROMPT = "a red heart on a white background"
SAMPLER = {"seed": 7, "steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
DRAWING = {**SAMPLER, "width": 96, "height": 96, "prompts": PROMPT}
LOADERS = {
    "UNETLoader": {"unet_name": "loom_demo.safetensors", "weight_dtype": "default"},
    "CLIPLoader": {"clip_name": "loom_demo_words.pt", "type": "stable_diffusion"},
    "VAELoader": {"vae_name": "loom_demo_vae.safetensors"},
}
VALUES: dict[str, dict[str, Any]] = {
    **LOADERS,
    "LoraLoom_Dataset": {"folder": f"{FOLDER}/heart", "trigger": "heart", "resolution": 96, "bucket_step": 16},
    "LoraLoom_TrainLora": {
        "steps": 900, "rank": 8, "alpha": 8.0, "learning_rate": 0.003, "targets": "attention", "batch_size": 8,
        "run_name": "heart", "gradient_checkpointing": False,
        "preserve": "arrow, circle, square, triangle, ring, cross, diamond, hexagon, crescent, bar, star",
        "preservation": 1.0, "quiet": "off",
    },
    "LoraLoom_Slider": {
        "more": "white", "less": "black", "subject": "a red star on a {} background\na green ring on a {} background",
        "resolution": 96, "steps": 12, "cfg": 3.0, "scheduler": "simple",
    },
    "LoraLoom_SaveLora": {"overwrite": True},
    "LoraLoom_LoadLoraStack": {"rows": f"<lora:{FOLDER}/heart:1>\n<lora:{FOLDER}/arrow:1>"},
    "LoraLoom_Previews": {**DRAWING, "every": 300},
    "LoraLoom_Report": {**DRAWING, "trigger": "heart", "neutral": "a ring on a black background", "seeds": 1},
    "LoraLoom_LeaveOneOut": DRAWING,
    "LoraLoom_ResizeLora": {"lora_name": f"{FOLDER}/heart.safetensors", "rank": 4},
    "LoraLoom_Health": {**DRAWING, "lora_name": f"{FOLDER}/heart.safetensors", "trigger": "heart"},
    "KSampler": SAMPLER,
    "EmptyLatentImage": {"width": 96, "height": 96},
}  # fmt: skip


def api_graph(server: ComfyServer, name: str) -> Graph:
    """A template as the server's API takes it, with the demo's values."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    graph = workflow_to_api(workflow, server.object_info)
    for key in [key for key, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple"]:
        del graph[key]
        graph |= {kind: {"class_type": kind, "inputs": {}} for kind in LOADERS}
        for node in graph.values():
            node["inputs"] = {name: _moved(value, key) for name, value in node["inputs"].items()}
    for node in graph.values():
        node["inputs"] |= _values(node["class_type"], node["inputs"])
    if name == SLIDER:
        previews = next(node["inputs"] for node in graph.values() if node["class_type"] == "LoraLoom_Previews")
        previews["prompts"] = "a blue square on a background\na green bar on a background"
    sets = [node["inputs"] for node in graph.values() if node["class_type"] == "LoraLoom_Dataset"]
    for kind, inputs in zip(("heart", "arrow"), sets, strict=False):
        inputs |= {"folder": f"{FOLDER}/{kind}", "trigger": kind}
    return graph


def _moved(value: Any, checkpoint: str) -> Any:
    """A link to an output of the checkpoint's loader goes to the loader of that part."""
    return [list(LOADERS)[value[1]], 0] if isinstance(value, list) and value[0] == checkpoint else value


def on_the_demo(nodes: dict[str, Node]) -> dict[str, Node]:
    """The same of a template's description, for a picture of it after it ran."""
    parts = {"MODEL": "UNETLoader", "CLIP": "CLIPLoader", "VAE": "VAELoader"}
    loaders = {kind: Node(kind, (0, 190 * row), LOADERS[kind], size=(320, 110)) for row, kind in enumerate(LOADERS)}
    found = {} if "unet" in nodes else loaders
    for key, node in nodes.items():
        links = {name: (parts[end[1]], end[1]) if end[0] == "checkpoint" else end for name, end in node.links.items()}
        if node.type not in ("CheckpointLoaderSimple", "MarkdownNote"):
            found[key] = replace(node, widgets={**node.widgets, **_values(node.type, node.widgets)}, links=links)
    return found


def _values(kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
    prompted = kind == "CLIPTextEncode" and inputs.get("text")
    if kind == "LoraLoom_LoadLoraStack" and "masks.mask1" in inputs:
        return {"rows": f"<lora:{FOLDER}/heart:1:mask=1>\n<lora:{FOLDER}/arrow:1:mask=-1>"}
    return {"text": PROMPT} if prompted else VALUES.get(kind, {})
