"""Rows of Load LoRA Stack on a page of the front end, for the tests of them: their files, and what is seen of them."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

import torch
from harness.browser import EMPTY, FrontEnd
from PIL import Image
from playwright.sync_api import Locator, expect
from safetensors.torch import load_file, save_file

STACK = "LoraLoom_LoadLoraStack"
LAYER = "blocks.0.self_attn.q"
SDXL = "input_blocks_7_1_transformer_blocks_9_attn2_to_v"
HOSTILE = "<img src=x onerror=window.hit=1>"
ROWS = f"app.graph.nodes.filter(n => n.comfyClass === '{STACK}').map(n => n.widgets.find(w => w.name === 'rows').value)"


def write_loras(base: Path) -> Path:
    """Below ComfyUI's base; returns their folder."""
    demo = Path(__file__).parents[1] / "demo" / "models" / "diffusion_models" / "loom_demo.safetensors"
    width = load_file(demo)[f"{LAYER}.weight"].shape[0]
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    cover = "data:image/png;base64," + b64encode(picture.getvalue()).decode()
    folder = base / "models" / "loras" / "stacked"
    folder.mkdir(parents=True)
    write(folder / "ink.safetensors", f"diffusion_model.{LAYER}", width, "sks wash, ink wash", cover)
    write(folder / "oil.safetensors", f"diffusion_model.{LAYER}", width, HOSTILE)
    write(folder / "armour.safetensors", f"lora_unet_{SDXL}", 2048, "armour")
    return folder


def write(path: Path, layer: str, width: int, words: str, cover: str = "") -> None:
    tensors = {
        f"{layer}.lora_down.weight": torch.randn(4, width, generator=torch.Generator().manual_seed(0)),
        f"{layer}.lora_up.weight": torch.randn(width, 4, generator=torch.Generator().manual_seed(1)),
    }
    about = {"modelspec.trigger_phrase": words, "modelspec.author": "Ada", "modelspec.thumbnail": cover}
    save_file(tensors, path, {key: value for key, value in about.items() if value})


def graph(front: FrontEnd, script: str) -> None:
    """A workflow of its own, made by a script that has `make(type, x, y)`."""
    front.load_workflow(EMPTY)
    front.page.evaluate(
        """async (script) => {
            const make = (type, x, y) => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                node.pos = [x, y]
                return node
            }
            new Function('make', script)(make)
            app.canvas.ds.scale = 1; app.canvas.ds.offset[0] = 0; app.canvas.ds.offset[1] = 0
            app.canvas.setDirty(true, true)
            app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()
        }""",
        script,
    )


def add(front: FrontEnd, name: str) -> int:
    return front.page.evaluate(
        "(name) => import('/extensions/lora-loom/js/stack/add.js').then(({addToStack}) => addToStack(name).id)", name
    )


def rows(front: FrontEnd) -> list[str]:
    return front.page.evaluate(f"() => {ROWS}")


def wires(front: FrontEnd) -> set[tuple[Any, ...]]:
    found = front.page.evaluate("""() => [...app.graph.links.values()].map((link) => [
        app.graph.getNodeById(link.origin_id).type, link.type, app.graph.getNodeById(link.target_id).type])""")
    return {tuple(each) for each in found}


def undo(front: FrontEnd) -> None:
    front.page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")


TEXT = "<lora:stacked/ink:0.8>\n<lora:stacked/armour:1:0.5>\n<lora:stacked/oil:0.5>"
SHOWN = f"""
    const loader = make('UNETLoader', 60, 150), stack = make('{STACK}', 460, 120)
    loader.widgets[0].value = 'loom_demo.safetensors'
    loader.connect(0, stack, 0)
    stack.widgets.find((widget) => widget.name === 'rows').value = ROWS
"""


def show(front: FrontEnd, text: str) -> None:
    graph(front, SHOWN.replace("ROWS", repr(text)))
    expect(front.page.locator(".loom-row")).to_have_count(text.count("<lora:"))
    front.still()


def text(front: FrontEnd) -> list[str]:
    return rows(front)[0].splitlines()


def row(front: FrontEnd, number: int) -> Locator:
    return front.page.locator(".loom-row").nth(number)


def unfold(front: FrontEnd, number: int) -> Locator:
    row(front, number).locator(".loom-row-more").click()
    details = row(front, number).locator(".loom-row-details")
    expect(details).to_be_visible()
    front.still()
    return details


def touched(front: FrontEnd) -> None:
    """The end of a press anywhere, after which the front end, and the rows, look at what has changed."""
    front.page.evaluate("""() => {
        for (const kind of ['pointerup', 'mouseup']) document.body.dispatchEvent(new Event(kind, {bubbles: true}))
    }""")


def pasted(front: FrontEnd) -> str:
    return front.page.evaluate("() => navigator.clipboard.readText()")


COVERS_NONE = """() => app.graph.nodes.every((a) => app.graph.nodes.every((b) => a === b
    || a.pos[0] + a.size[0] <= b.pos[0] || b.pos[0] + b.size[0] <= a.pos[0]
    || a.pos[1] + a.size[1] <= b.pos[1] || b.pos[1] + b.size[1] <= a.pos[1]
    || ![a, b].some((each) => each.type === 'LoraLoom_LoadLoraStack')))"""
STATES = (
    f"{TEXT}\n<lora:stacked/oil:0.6:blocks=IN=0.5:start=0.2:off>\n<lora:gone:0>\n# people\n<lora:x:abc>\n"
    "<lora:stacked/ink:0:1:words=>"
)
