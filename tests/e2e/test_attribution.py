"""Who made what went into a picture: in the PNG of every run, also when the stack's output was still at hand."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.server import ComfyServer
from lora_loom.lora_core.files.hashes import data_hash
from lora_loom.lora_core.files.save import save
from PIL import Image
from safetensors.torch import load_file, save_file

from e2e import graphs

WORKFLOW: dict[str, Any] = {"nodes": [], "links": [], "version": 0.4}  # a front end's prompts have one
LAYER = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> Iterator[Path]:
    """`ink` with author and licence and `oil` without a header."""
    folder = server.base / "models" / "loras" / "made"
    folder.mkdir(parents=True, exist_ok=True)
    width = load_file(demo_model())["blocks.0.self_attn.q.weight"].shape[0]
    for seed, name in enumerate(("ink", "oil")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"{LAYER}.lora_down.weight": torch.randn(2, width, generator=generator) * 0.1,
            f"{LAYER}.lora_up.weight": torch.randn(width, 2, generator=generator) * 0.1,
        }
        if name == "ink":
            save(folder / "ink.safetensors", tensors, {"modelspec.author": "Ada", "modelspec.license": "CC-BY-4.0"})
        else:
            save_file(tensors, folder / "oil.safetensors")
    yield folder
    shutil.rmtree(folder)


def demo_model() -> Path:
    return Path(__file__).parents[1] / "demo" / "models" / "diffusion_models" / "loom_demo.safetensors"


def graph(rows: Any, prefix: str = "one", seed: int = 5, **more: Any) -> graphs.Graph:
    loader = graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], clip=["clip", 0], rows=rows, **more)
    made = {**graphs.base(), "stack": loader, **graphs.picture(["stack", 0], ["stack", 1], "a heart", seed)}
    made["sampler"]["inputs"]["steps"] = 1
    made["picture"]["inputs"]["filename_prefix"] = prefix
    return made


def text(server: ComfyServer, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what the PNG of a run says."""
    (image,) = entry["outputs"]["picture"]["images"]
    return {key: json.loads(value) for key, value in Image.open(io.BytesIO(server.view(image))).text.items()}


def adapters(server: ComfyServer, made: graphs.Graph) -> list[dict[str, Any]]:
    return text(server, server.run(made, workflow=WORKFLOW)).get("lora_loom_adapters", [])


def test_saved_with_every_picture(server: ComfyServer, files: Path) -> None:
    rows = "<lora:ink:0.5>\n<lora:made/oil:-0.25:0>\n<lora:gone:1:off>"
    first = text(server, server.run(graph(rows), workflow=WORKFLOW))
    ink, oil = first["lora_loom_adapters"]
    assert ink == {
        "name": "made/ink.safetensors", "sha256": data_hash(files / "ink.safetensors"), "strength": 0.5,
        "text_strength": 0.5, "license": "CC-BY-4.0", "author": "Ada", "title": None, "node": "stack",
    }  # fmt: skip
    assert (oil["name"], oil["strength"], oil["text_strength"]) == ("made/oil.safetensors", -0.25, 0.0)
    assert oil["sha256"] == data_hash(files / "oil.safetensors") and oil["author"] is oil["license"] is None
    assert first["Lora hashes"] == f"ink: {ink['sha256'][:12]}, oil: {oil['sha256'][:12]}"
    assert first["lora_loom_credit"] == "LoRAs: ink by Ada (strength 0.5; CC-BY-4.0); oil (strength -0.25)"
    assert "/trainedAlgorithmicMedia<" in first["XML:com.adobe.xmp"], "as JSON spells it, and so as it is"
    again = server.run(graph(rows, "two"), workflow=WORKFLOW)
    cached = {
        node for kind, data in again["status"]["messages"] if kind == "execution_cached" for node in data["nodes"]
    }
    assert {"stack", "sampler"} <= cached, "only the picture is saved again"
    second = text(server, again)
    assert (second["lora_loom_adapters"], second["Lora hashes"]) == ([ink, oil], first["Lora hashes"])


def test_prompts_that_wait_together(server: ComfyServer, files: Path) -> None:
    """All are posted before the first has run, and the later ones find its output."""
    waiting = [server.post_prompt(graph("<lora:ink:0.125>", seed=seed), WORKFLOW) for seed in (1, 2, 3)]
    for prompt in waiting:
        (entry,) = text(server, server.wait(prompt))["lora_loom_adapters"]
        assert entry["strength"] == 0.125


def test_rows_by_link_and_several_stacks(server: ComfyServer, files: Path) -> None:
    for prefix in ("a", "b"):
        made = graph(["words", 0], prefix, lora_stack=["before", 2])
        made["words"] = graphs.node("StringConcatenate", string_a="<lora:ink:", string_b="0.75>", delimiter="")
        made["before"] = graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], rows="<lora:oil:0.5>")
        made["stack"]["inputs"]["model"] = ["core", 0]
        made["core"] = graphs.node(
            "LoraLoaderModelOnly", model=["before", 0], lora_name="made/ink.safetensors", strength_model=1.0
        )
        made["loose"] = graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], rows="<lora:oil:9>")
        found = [(each["name"], each["strength"], each["node"]) for each in adapters(server, made)]
        oil, ink = "made/oil.safetensors", "made/ink.safetensors"
        assert sorted(found) == sorted([(oil, 0.5, "before"), (oil, 0.5, "stack"), (ink, 0.75, "stack")])


def test_a_stack_that_is_only_handed_on_is_told_once(server: ComfyServer, files: Path) -> None:
    for prefix in ("c", "d"):
        made = graph("<lora:ink:0.5>", prefix, lora_stack=["before", 2])
        made["before"] = graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], rows="<lora:oil:0.5>")
        assert [each["name"] for each in adapters(server, made)] == ["made/oil.safetensors", "made/ink.safetensors"]


def test_nothing_is_said_when_nothing_is_on(server: ComfyServer, files: Path) -> None:
    told = text(server, server.run(graph("<lora:ink:1:off>"), workflow=WORKFLOW))
    assert (
        not {"lora_loom_adapters", "Lora hashes", "lora_loom_credit", "XML:com.adobe.xmp"} & told.keys()
        and "prompt" in told
    )


@pytest.mark.parametrize("by_link", [False, True])
def test_a_changed_file_is_told(server: ComfyServer, files: Path, by_link: bool) -> None:
    """Also when its name comes by a link; and what has not changed is not made again."""
    made = graph(["words", 0] if by_link else "<lora:oil:0.5>", f"changed {by_link}")
    if by_link:
        made["words"] = graphs.node("StringConcatenate", string_a="<lora:oil:", string_b="0.5>", delimiter="")
    (before,) = adapters(server, made)
    tensors = {key: value * 2 for key, value in load_file(files / "oil.safetensors").items()}
    save_file(tensors, files / "oil.safetensors")
    (after,) = adapters(server, made)
    assert after["sha256"] != before["sha256"] and after["sha256"] == data_hash(files / "oil.safetensors")
    again = server.run(made, workflow=WORKFLOW)
    assert "picture" in [
        node for kind, data in again["status"]["messages"] if kind == "execution_cached" for node in data["nodes"]
    ]
