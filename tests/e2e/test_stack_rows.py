"""What a row of Load LoRA Stack shows and offers beside its strengths, in both renderers of the front end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.browser import FrontEnd
from harness.server import ComfyServer
from playwright.sync_api import Browser, expect
from safetensors.torch import load_file, save_file

EMPTY = {"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4, "last_node_id": 0,
         "last_link_id": 0}  # fmt: skip
LAYER = "blocks.0.self_attn.q"
ROWS = "app.graph.nodes.filter(n => n.comfyClass === 'LoraLoom_LoadLoraStack').map(n => n.widgets.find(w => w.name === 'rows').value)"


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> Iterator[None]:
    """LoRAs for the demo base."""
    demo = Path(__file__).parents[1] / "demo" / "models" / "diffusion_models" / "loom_demo.safetensors"
    width = load_file(demo)[f"{LAYER}.weight"].shape[0]
    folder = server.base / "models" / "loras" / "stacked"
    folder.mkdir(parents=True)
    for seed, (name, words) in enumerate({"ink": "sks wash, ink wash", "oil": "impasto"}.items()):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"diffusion_model.{LAYER}.lora_down.weight": torch.randn(4, width, generator=generator),
            f"diffusion_model.{LAYER}.lora_up.weight": torch.randn(width, 4, generator=generator),
        }
        save_file(tensors, folder / f"{name}.safetensors", {"modelspec.trigger_phrase": words})
    yield
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def front(request: pytest.FixtureRequest, browser: Browser, server: ComfyServer, files: None) -> Iterator[FrontEnd]:
    with FrontEnd(browser, server, vue=request.param) as opened:
        yield opened
        assert opened.errors == [] and opened.external == []


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


SCENE = """
    const loader = make('UNETLoader', 100, 200), clip = make('CLIPLoader', 100, 400)
    const train = make('LoraLoom_TrainLora', 900, 500), sampler = make('KSampler', 500, 200)
    const shift = make('ModelSamplingSD3', 500, 600), text = make('CLIPTextEncode', 500, 750)
    loader.connect(0, sampler, 0)
    loader.connect(0, shift, 0)
    shift.connect(0, train, 0)
    clip.connect(0, text, 0)
"""
LOADED = {
    ("UNETLoader", "MODEL", "ModelSamplingSD3"),
    ("ModelSamplingSD3", "MODEL", "LoraLoom_TrainLora"),
}
STACK = "LoraLoom_LoadLoraStack"


def test_a_lora_is_put_on_the_stack_that_is_meant_or_on_a_new_one(front: FrontEnd) -> None:
    """What is trained keeps the model as it was loaded; all of it is one step to undo."""
    graph(front, SCENE)
    before = wires(front)
    assert before == {*LOADED, ("UNETLoader", "MODEL", "KSampler"), ("CLIPLoader", "CLIP", "CLIPTextEncode")}
    add(front, "stacked/ink.safetensors")
    wired = {
        *LOADED, ("UNETLoader", "MODEL", STACK), (STACK, "MODEL", "KSampler"), ("CLIPLoader", "CLIP", STACK),
        (STACK, "CLIP", "CLIPTextEncode"),
    }  # fmt: skip
    assert wires(front) == wired and rows(front) == ["<lora:stacked/ink:1>"]
    expect(front.page.locator(".loom-row")).to_have_count(1)
    clear = """() => app.graph.nodes.every((a) => app.graph.nodes.every((b) => a === b
        || a.pos[0] + a.size[0] <= b.pos[0] || b.pos[0] + b.size[0] <= a.pos[0]
        || a.pos[1] + a.size[1] <= b.pos[1] || b.pos[1] + b.size[1] <= a.pos[1]
        || ![a, b].some((each) => each.type === 'LoraLoom_LoadLoraStack')))"""
    assert front.page.evaluate(clear), "the new node covers none"
    undo(front)
    front.becomes(lambda: wires(front), before)
    assert rows(front) == []

    first = add(front, "stacked/ink.safetensors")
    assert add(front, "stacked/oil") == first, "the only one"
    front.becomes(lambda: rows(front), ["<lora:stacked/ink:1>\n<lora:stacked/oil:1>"])
    undo(front)
    front.becomes(lambda: rows(front), ["<lora:stacked/ink:1>"])
    front.page.evaluate("""() => {
        const other = LiteGraph.createNode('LoraLoom_LoadLoraStack')
        app.graph.add(other)
        other.widgets.find(w => w.name === 'rows').value = '<lora:stacked/oil:0.5:off>'
        app.canvas.selectNode(other)
    }""")
    assert add(front, "stacked\\oil.safetensors") != first, "the one that is selected"
    assert rows(front) == ["<lora:stacked/ink:1>", "<lora:stacked/oil:0.5>"], "a row that is there is switched on"
