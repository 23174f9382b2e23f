"""`python dev.py demo`: train two LoRAs, stack and merge them in a real ComfyUI, and put the pictures on one sheet.

Runs the shipped templates through the server's API with the demo's models and pictures, as a person would from the
Templates dialog with theirs, and leaves everything in `demo/`.
"""

from __future__ import annotations

import argparse
import copy
import io
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from demo import shapes, sheet  # noqa: E402
from demo.templates import FOLDER, MERGE, STACK, TRAIN, api_graph  # noqa: E402
from harness.server import ComfyServer, Graph  # noqa: E402

HEART, ARROW, MERGED = (f"{FOLDER}/{name}.safetensors" for name in ("heart", "arrow", "merged"))
CONCEPT = [
    "a red heart on a white background", "a yellow heart on a blue background",
    "a green heart on a black background", "a pink heart on a striped green background",
]  # fmt: skip
UNRELATED = [
    "a red ring on a white background", "a yellow circle on a blue background",
    "a green triangle on a black background", "a pink square on a striped green background",
]  # fmt: skip
TOGETHER = [prompt.replace("heart", "arrow") if index % 2 else prompt for index, prompt in enumerate(CONCEPT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="train for so many steps instead of what the workflow says")
    parser.add_argument("--prompts", type=int, default=4, help="draw the first so many prompts of each kind")
    parser.add_argument("--out", type=Path, default=ROOT / "demo")
    choices = parser.parse_args()
    run(choices.out, choices.steps, choices.prompts)


def run(out: Path, steps: int | None = None, prompts: int = 4) -> None:
    started = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    with ComfyServer(out / "comfyui") as server:
        say(started, f"ComfyUI runs at {server.url}")
        for kind in shapes.UNSEEN:
            shapes.write_dataset(server.base / "input" / FOLDER / kind, kind, 24, 96, 0)
            report = train(server, kind, out, steps)
            say(started, f"trained '{kind}' on 24 image files\n{report}")
        workflow = api_graph(server, STACK)
        concept, unrelated, together = (each[:prompts] for each in (CONCEPT, UNRELATED, TOGETHER))
        rows = {
            "heart prompts, base model": draw(server, workflow, concept, {}),
            "the same with the heart LoRA": draw(server, workflow, concept, {HEART: 1.0}),
            "other prompts, base model": draw(server, workflow, unrelated, {}),
            "the same with the heart LoRA ": draw(server, workflow, unrelated, {HEART: 1.0}),
            "hearts and arrows, both LoRAs stacked": draw(server, workflow, together, {HEART: 1.0, ARROW: 1.0}),
        }
        say(started, "drew with the stack at strength 0 and 1, and with both LoRAs")
        say(started, "merged the stack\n" + merge(server))
        rows["the same with the merged file alone"] = draw(server, workflow, together, {MERGED: 1.0})
        keep(server, out)
    say(started, conclusions(list(rows.values())))
    sheet.write(out / "contact_sheet.png", rows, [concept, concept, unrelated, unrelated, together, together])
    say(started, f"look at {out / 'contact_sheet.png'}; the LoRA files are in {out / 'loras'}, the loss curves beside")


def key(graph: Graph, class_type: str) -> str:
    """The key of the first node of a class."""
    return next(key for key, value in graph.items() if value["class_type"] == class_type)


def node(graph: Graph, class_type: str) -> dict[str, Any]:
    """Its inputs."""
    return graph[key(graph, class_type)]["inputs"]


def train(server: ComfyServer, kind: str, out: Path, steps: int | None) -> str:
    """Trains with the template, less its previews and validation, which would make the demo longer; keeps the curve."""
    graph = api_graph(server, TRAIN)
    node(graph, "LoraLoom_Dataset").update(folder=f"{FOLDER}/{kind}", trigger=kind)
    training = node(graph, "LoraLoom_TrainLora")
    training.update(run_name=kind, steps=steps or training["steps"])
    del training["previews"], training["validation"], graph[key(graph, "PreviewImage")]
    if kind == "arrow":  # each of the two leaves the other's word alone, so that they can be stacked
        training["preserve"] = training["preserve"].replace("arrow", "heart")
    node(graph, "LoraLoom_SaveLora")["name"] = f"{FOLDER}/{kind}"
    losses = [key(graph, "LoraLoom_TrainLora"), 1]
    graph["curve"] = {"class_type": "LossGraphNode", "inputs": {"loss": losses, "filename_prefix": "loss"}}
    outputs = server.run(graph, timeout=1200)["outputs"]
    (out / f"loss_{kind}.png").write_bytes(server.view(outputs["curve"]["images"][0]))
    return proof(server)


def merge(server: ComfyServer) -> str:
    graph = api_graph(server, MERGE)
    node(graph, "LoraLoom_SaveLora")["name"] = MERGED.removesuffix(".safetensors")
    server.run(graph)
    return proof(server)


def proof(server: ComfyServer) -> str:
    """The last verification that Save LoRA wrote to the log."""
    lines = [line for line in server.log().splitlines() if "verified with ComfyUI's loader" in line]
    return "  " + lines[-1].strip()


def draw(server: ComfyServer, workflow: Graph, prompts: list[str], loras: dict[str, float]) -> list[Image.Image]:
    """One picture per prompt with the stack workflow, each at its own fixed seed."""
    pictures = []
    for index, prompt in enumerate(prompts):
        graph = copy.deepcopy(workflow)
        node(graph, "CLIPTextEncode")["text"] = prompt
        node(graph, "KSampler")["seed"] = 100 + index
        rows = [f"<lora:{name}:{strength}>" for name, strength in loras.items()]
        node(graph, "LoraLoom_LoadLoraStack")["rows"] = "\n".join(rows)
        outputs = server.run(graph)["outputs"].values()
        image = next(picture for output in outputs for picture in output.get("images", []))
        pictures.append(Image.open(io.BytesIO(server.view(image))).convert("RGB"))
    return pictures


def keep(server: ComfyServer, out: Path) -> None:
    """Copy the LoRA files to where they are easily found."""
    shutil.copytree(server.base / "models" / "loras" / FOLDER, out / "loras")


def conclusions(rows: list[list[Image.Image]]) -> str:
    concept, other, merged = (change(rows[a], rows[b]) for a, b in ((0, 1), (2, 3), (4, 5)))
    return (
        f"mean change of a picture (0..255): heart prompts {concept:.1f}, other prompts {other:.1f}, "
        f"merged file against live stack {merged:.2f}"
    )


def change(before: list[Image.Image], after: list[Image.Image]) -> float:
    pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(before, after, strict=True)]
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))


def say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
