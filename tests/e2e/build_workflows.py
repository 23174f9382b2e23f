"""Makes `workflows/*.json` and their thumbnails in the real front end: `python tests/e2e/build_workflows.py`.

A graph is described below by its nodes, widget values and links; the front end itself lays down the slots, sizes and
serialisation, so what ships is what a person would have saved. Thumbnails show the graph after it ran.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from demo import shapes  # noqa: E402
from harness.browser import FrontEnd, open_browser  # noqa: E402
from harness.comfyui import comfyui_path  # noqa: E402
from harness.server import ComfyServer  # noqa: E402
from PIL import Image  # noqa: E402

BASE_URL = "https://github.com/lora-loom/lora-loom/raw/main/tests/demo/models"
MODELS = {
    "UNETLoader": ("loom_demo.safetensors", "diffusion_models"),
    "VAELoader": ("loom_demo_vae.safetensors", "vae"),
    "CLIPLoader": ("loom_demo_words.pt", "text_encoders"),
}
NEGATIVE = ""
ROWS = "<lora:lora_loom_demo/heart:1>\n<lora:lora_loom_demo/arrow:1>"
SAMPLER = {
    "seed": 7,
    "control_after_generate": "fixed",
    "steps": 20,
    "cfg": 3.0,
    "sampler_name": "euler",
    "scheduler": "simple",
    "denoise": 1.0,
}


@dataclass
class Node:
    type: str
    pos: tuple[int, int]
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, str]] = field(default_factory=dict)  # input name: (node key, output name)
    title: str = ""
    size: tuple[int, int] | None = None


def loaders(x: int, y: int) -> dict[str, Node]:
    return {
        "unet": Node("UNETLoader", (x, y), {"unet_name": MODELS["UNETLoader"][0], "weight_dtype": "default"}),
        "clip": Node("CLIPLoader", (x, y + 130), {"clip_name": MODELS["CLIPLoader"][0], "type": "stable_diffusion"}),
        "vae": Node("VAELoader", (x, y + 290), {"vae_name": MODELS["VAELoader"][0]}),
    }


def sampling(
    x: int, y: int, prompt: str, model: tuple[str, str], clip: tuple[str, str], key: str = ""
) -> dict[str, Node]:
    """Prompt to picture. Node keys end in `key`."""
    return {
        f"prompt{key}": Node("CLIPTextEncode", (x, y), {"text": prompt}, {"clip": clip}, "Prompt", (300, 90)),
        f"negative{key}": Node("CLIPTextEncode", (x, y + 150), {"text": NEGATIVE}, {"clip": clip}, "Negative prompt", (300, 90)),
        f"latent{key}": Node("EmptyLatentImage", (x, y + 300), {"width": 96, "height": 96, "batch_size": 1}),
        f"sampler{key}": Node("KSampler", (x + 340, y), SAMPLER, {
            "model": model, "positive": (f"prompt{key}", "CONDITIONING"), "negative": (f"negative{key}", "CONDITIONING"),
            "latent_image": (f"latent{key}", "LATENT"),
        }),
        f"decode{key}": Node("VAEDecode", (x + 340, y + 330), {}, {"samples": (f"sampler{key}", "LATENT"), "vae": ("vae", "VAE")}),
    }  # fmt: skip


def note(text: str, pos: tuple[int, int], size: tuple[int, int]) -> Node:
    return Node("MarkdownNote", pos, {"": text}, size=size, title="Read me")


def train_graph() -> dict[str, Node]:
    text = (
        "### Train a LoRA\n1. Put pictures and same-name `.txt` captions into a folder and name it in **LoRA Dataset**.\n"
        "2. Queue. Cancel when you like: the run is kept and goes on from there.\n3. The picture on the right is made with the "
        "new LoRA; **Save LoRA** has written and verified the file.\n\nFor your own model put its loader in place of the three "
        "on the left and set resolution (512 for SD 1.5, 1024 for newer ones), rank, alpha and learning rate 0 and targets auto "
        "(what suits your model), batch 1 and the sampler it likes."
    )
    return {
        "note": note(text, (0, -270), (620, 220)),
        **loaders(0, 0),
        "dataset": Node("LoraLoom_Dataset", (320, 0), {"folder": "lora_loom_demo/heart", "trigger": "heart", "resolution": 96, "repeats": 1, "bucket_step": 16}, size=(330, 560)),
        "train": Node("LoraLoom_TrainLora", (690, 0), TRAINING, {"model": ("unet", "MODEL"), "clip": ("clip", "CLIP"), "vae": ("vae", "VAE"), "dataset": ("dataset", "dataset")}, size=(360, 760)),
        "save": Node("LoraLoom_SaveLora", (1090, 0), {"name": "lora_loom_demo/%title%", "format": "comfyui", "dtype": "fp16", "overwrite": True}, {"adapter": ("train", "adapter"), "model": ("unet", "MODEL")}, size=(340, 520)),
        "apply": Node("LoraModelLoader", (1090, 600), {"strength_model": 1.0}, {"model": ("unet", "MODEL"), "lora": ("train", "lora_model")}, size=(340, 110)),
        **sampling(1470, 0, "a red heart on a white background", ("apply", "model"), ("clip", "CLIP")),
        "preview": Node("PreviewImage", (2170, 0), {}, {"images": ("decode", "IMAGE")}, "With the new LoRA", (320, 340)),
        "loss": Node("LossGraphNode", (1090, 790), {"filename_prefix": "loss_graph"}, {"loss": ("train", "loss_map")}, size=(340, 330)),
    }  # fmt: skip


def stack_graph() -> dict[str, Node]:
    text = (
        "### Stack LoRAs\nAdd rows, drag them, or paste `<lora:name:0.8>` tags into the list. All LoRAs of a weight are added up "
        "exactly and applied once. Chain more through `lora_stack`; `triggers` holds their trigger words."
    )
    rows = {"rows": "<lora:lora_loom_demo/heart:1>\n<lora:lora_loom_demo/arrow:1>"}
    return {
        "note": note(text, (0, -170), (620, 120)),
        **loaders(0, 0),
        "stack": Node("LoraLoom_LoadLoraStack", (320, 0), rows, {"model": ("unet", "MODEL"), "clip": ("clip", "CLIP")}, size=(360, 350)),
        **sampling(720, 0, "a yellow heart on a blue background", ("stack", "model"), ("stack", "clip")),
        "saved": Node("SaveImage", (1420, 0), {"filename_prefix": "lora_loom_stack"}, {"images": ("decode", "IMAGE")}, size=(320, 360)),
    }  # fmt: skip


def merge_graph() -> dict[str, Node]:
    text = (
        "### Merge LoRAs\nRank 0 keeps the sum exact: the saved file alone equals the live stack. Another rank makes a smaller "
        "file at the error shown on the node."
    )
    rows = {"rows": ROWS}
    both = {"model": ("unet", "MODEL"), "clip": ("clip", "CLIP")}
    return {
        "note": note(text, (0, -170), (620, 120)),
        **loaders(0, 0),
        "stack": Node("LoraLoom_LoadLoraStack", (320, 0), rows, both, size=(360, 450)),
        "merge": Node("LoraLoom_MergeLora", (720, 0), {"rank": 0, "strengths": "", "seed": 0}, {**both, "lora_stack": ("stack", "lora_stack")}, size=(340, 450)),
        "save": Node("LoraLoom_SaveLora", (1100, 0), {"name": "lora_loom_demo/merged", "format": "comfyui", "dtype": "fp16", "overwrite": True}, {"adapter": ("merge", "adapter"), **both}, size=(340, 560)),
    }  # fmt: skip


TRAINING = {
    "steps": 900, "rank": 8, "alpha": 8.0, "learning_rate": 0.003, "targets": "attention", "seed": 0, "batch_size": 8,
    "accumulation": 1, "run_name": "heart", "gradient_checkpointing": False,
    "preserve": "arrow, circle, square, triangle, ring, cross, diamond, hexagon, crescent, bar, star", "preservation": 1.0,
}  # fmt: skip
GRAPHS = {"train": train_graph, "stack": stack_graph, "merge": merge_graph}

BUILD = """async (nodes) => {
  await app.loadGraphData({nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4, last_node_id: 0, last_link_id: 0})
  const made = {}
  for (const [key, spec] of Object.entries(nodes)) {
    const node = LiteGraph.createNode(spec.type)
    if (!node) throw new Error('no node ' + spec.type)
    app.graph.add(node)
    node.pos = spec.pos
    if (spec.title) node.title = spec.title
    for (const [name, value] of Object.entries(spec.widgets)) {
      const widget = name ? node.widgets.find(w => w.name === name) : node.widgets[0]
      if (!widget) throw new Error(spec.type + ' has no widget ' + name)
      widget.value = value
    }
    if (spec.size) node.setSize(spec.size)
    node.properties = {...node.properties, ...spec.properties}
    made[key] = node
  }
  for (const [key, spec] of Object.entries(nodes))
    for (const [input, [from, output]] of Object.entries(spec.links)) {
      const source = made[from], target = made[key]
      const out = source.outputs.findIndex(o => o.name === output), into = target.inputs.findIndex(i => i.name === input)
      if (out < 0 || into < 0) throw new Error(`no ${from}.${output} or ${key}.${input}`)
      source.connect(out, target, into)
    }
}"""


def described(node: Node, version: str) -> dict[str, Any]:
    ours = node.type.startswith("LoraLoom_")
    properties: dict[str, Any] = {
        "cnr_id": "lora-loom" if ours else "comfy-core",
        "ver": version if ours else core_version(),
    }
    if node.type in MODELS:
        name, directory = MODELS[node.type]
        properties["models"] = [{"name": name, "url": f"{BASE_URL}/{directory}/{name}", "directory": directory}]
    return {**vars(node), "properties": properties}


def core_version() -> str:
    return project_version(comfyui_path())


def project_version(folder: Path) -> str:
    return re.search(r'^version = "(.+)"', (folder / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def build(page: FrontEnd, name: str, folder: Path, version: str) -> dict[str, Any]:
    page.page.evaluate(BUILD, {key: described(node, version) for key, node in GRAPHS[name]().items()})
    page.settle()
    workflow = page.serialized()
    (folder / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="ascii")
    return workflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(GRAPHS), help="of the workflows; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "workflows")
    parser.add_argument("--loras", type=Path, help="a folder of trained LoRAs that `stack` and `merge` may name")
    parser.add_argument(
        "--no-run", action="store_true", help="write the JSON only, without running it for the thumbnails"
    )
    choices = parser.parse_args()
    version = project_version(ROOT)
    with ComfyServer() as server, open_browser() as browser:
        for kind in ("heart", "arrow"):
            shapes.write_dataset(server.base / "input" / "lora_loom_demo" / kind, kind, 24, 96, 0)
        if choices.loras:
            shutil.copytree(choices.loras, server.base / "models" / "loras", dirs_exist_ok=True)
        for name in choices.names:
            with FrontEnd(browser, server) as page:  # a fresh page has fresh lists of files
                build(page, name, choices.out, version)
                if not choices.no_run:
                    server.run(train_other(page.graph_to_prompt()), timeout=1200) if name == "train" else None
                    page.run()
                    wait_idle(page)
                    thumbnail(page, choices.out / f"{name}.jpg")
                assert not page.errors, page.errors


def thumbnail(page: FrontEnd, path: Path, width: int = 1280) -> None:
    """Taken at twice the size: below a zoom the front end draws no text."""
    page.screenshot_graph(path, width=2 * width)
    with Image.open(path) as picture:
        picture.resize((width, picture.height * width // picture.width), Image.Resampling.LANCZOS).save(
            path, quality=88
        )


def wait_idle(page: FrontEnd, seconds: int = 1200) -> None:
    """Until everything that the page queued has run. The page stays awake meanwhile, or its pictures would time out."""
    for _ in range(seconds):
        page.page.wait_for_timeout(1000)
        queue = page.server.get("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
    raise TimeoutError("the queue did not empty")


def train_other(graph: dict[str, Any]) -> dict[str, Any]:
    """The train graph for the second LoRA, which the other two workflows name."""
    for node in graph.values():
        if node["class_type"] == "LoraLoom_Dataset":
            node["inputs"] |= {"folder": "lora_loom_demo/arrow", "trigger": "arrow"}
        if node["class_type"] == "LoraLoom_TrainLora":
            node["inputs"]["run_name"] = "arrow"
            node["inputs"]["preserve"] = node["inputs"]["preserve"].replace("arrow", "heart")
    return graph


if __name__ == "__main__":
    main()
