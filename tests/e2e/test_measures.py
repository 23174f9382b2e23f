"""Checks what nodes measured in the browser, in both renderers: read, asked for other settings, opened, and kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.browser import FrontEnd
from harness.server import ComfyServer
from lora_loom.lora_core.files.save import save
from lora_loom.lora_core.trust.sealing import seal
from playwright.sync_api import Locator, expect
from safetensors.torch import load_file, save_file

from e2e import graphs

HOSTILE = "<img src=x onerror=alert(1)>"
KINDS = ("Interference", "MergeLora", "LeaveOneOut", "Report", "Passport", "Health")
DEMO = Path(__file__).parents[1] / "demo" / "models" / "diffusion_models" / "loom_demo.safetensors"
SAMPLING = {
    "negative": "", "seeds": 1, "seed": 3, "width": 64, "height": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "simple",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> Iterator[Path]:
    """Three LoRAs, of which the first and the last have half in common."""
    folder = server.base / "models" / "loras" / "measured"
    folder.mkdir(parents=True)
    layers = [key for key in load_file(DEMO) if re.fullmatch(r"blocks\.[01]\.self_attn\.[qkvo]\.weight", key)]
    width = load_file(DEMO)[layers[0]].shape[0]
    for name, seeds in {"ink & oil": (1, 2), "chalk": (3, 4), "both": (1, 5)}.items():
        tensors = {}
        for number, key in enumerate(layers):
            parts = [torch.randn(2, 4, width, generator=torch.Generator().manual_seed(10 * number + s)) for s in seeds]
            down, up = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            stem = f"diffusion_model.{key.removesuffix('.weight')}"
            tensors |= {f"{stem}.lora_down.weight": down / 9, f"{stem}.lora_up.weight": up.T.contiguous() / 9}
        save_file(tensors, folder / f"{name}.safetensors", {"modelspec.title": HOSTILE})
    hole = next(name for name in tensors if name.endswith("lora_up.weight"))
    save_file({**tensors, hole: tensors[hole] * torch.nan}, folder / "burnt.safetensors")
    contract = {"lora_loom.contract": json.dumps({"concept": HOSTILE, "license": "CC-BY-4.0"})}
    save(folder / "signed.safetensors", tensors, contract, seal=seal([bytes(32)], "ink@ada"))
    yield folder
    shutil.rmtree(folder)


def graph() -> graphs.Graph:
    """Two files of a stack and a connected adapter: measured, merged, left out, and the merge looked at."""
    rows = "<lora:measured/ink & oil:1>\n<lora:measured/chalk:1>"
    parts = {"lora_stack": ["stack", 2], "strengths": "", "adapters.adapter0": ["third", 0]}
    models = {"model": ["unet", 0], "clip": ["clip", 0], "vae": ["vae", 0]}
    whole = {"rank": 0, "energy": 1.0, "size_mb": 0.0, "strength": 1.0, "text_strength": 1.0, "keep": "", "drop": ""}
    return {
        **graphs.base(),
        "stack": graphs.node("LoraLoom_LoadLoraStack", model=["unet", 0], rows=rows),
        "third": graphs.node("LoraLoom_ResizeLora", model=["unet", 0], lora_name="measured/both.safetensors", **whole),
        "found": graphs.node("LoraLoom_Interference", model=["unet", 0], **parts),
        "passport": graphs.node("LoraLoom_Passport", lora="measured/signed.safetensors"),
        "merge": graphs.node("LoraLoom_MergeLora", model=["unet", 0], rank=0, **parts),
        "text": graphs.node("PreviewAny", source=["merge", 2]),
        "without": graphs.node("LoraLoom_LeaveOneOut", **models, prompts="a heart", **SAMPLING, **parts),
        "health": graphs.node("LoraLoom_Health", model=["unet", 0], lora_name="measured/burnt.safetensors",
                              repair="faults", blocks="parts", trigger="heart", prompts="", **SAMPLING),
        "report": graphs.node("LoraLoom_Report", **models, adapter=["merge", 0], trigger="heart", prompts="heart",
                              class_words="", neutral="a square", strength=1.0, **SAMPLING),
    }  # fmt: skip


@pytest.fixture(scope="module", name="front")
def _measured(front: FrontEnd, files: Path) -> FrontEnd:
    """With the graph, which was queued."""
    front.page.evaluate("(graph) => app.loadApiJson(graph, 'measured')", graph())
    front.settle()
    front.page.evaluate("() => app.graph.nodes.forEach((node, at) => (node.pos = [600 * at, 0]))")
    front.run()
    return front


NODE = """(kind) => [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)
    .findLast((node) => node.comfyClass === `LoraLoom_${kind}`)"""
LOOK = f"""(kind) => {{
    const node = ({NODE})(kind), {{ ds }} = app.canvas
    ds.scale = 1
    ds.offset[0] = 300 - node.pos[0]
    ds.offset[1] = 850 - node.pos[1] - node.size[1]
    app.canvas.setDirty(true, true)
    const {{ element }} = node.widgets.find((widget) => widget.element?.matches('.loom-measure'))
    element.dataset.kind = kind
}}"""
SET = f"""([kind, values]) => {{
    for (const [name, value] of Object.entries(values)) {{
        const widget = ({NODE})(kind).widgets.find((widget) => widget.name === name)
        widget.value = value
        widget.callback?.(value)
    }}
}}"""
SMALLEST = """(element) => {
    const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT)
    const sizes = []
    while (walk.nextNode()) {
        const { parentElement } = walk.currentNode
        if (walk.currentNode.data.trim()) sizes.push(parseFloat(getComputedStyle(parentElement).fontSize))
    }
    return Math.min(...sizes)
}"""


def figures(front: FrontEnd, kind: str) -> Locator:
    """What a node shows of its figures, in sight at 100 %."""
    front.page.evaluate(LOOK, kind)
    return front.page.locator(f".loom-measure[data-kind={kind}]")


def verdict(front: FrontEnd, kind: str) -> Locator:
    return figures(front, kind).locator(".loom-verdict")


def press(shown: Locator, name: str) -> None:
    """Wherever the node has grown to on the page."""
    shown.get_by_role("button", name=name, exact=True).dispatch_event("click")


def focus(front: FrontEnd, target: Locator) -> None:
    """Once it is drawn: what is not yet in sight takes no focus."""
    expect(target).to_be_visible()
    front.drawn()
    target.focus()
    expect(target).to_be_focused()


def change(front: FrontEnd, kind: str, **values: Any) -> None:
    """As typing does it."""
    front.page.evaluate(SET, [kind, values])


def test_they_can_be_read(front: FrontEnd) -> None:
    """Names are text, letters are as high as those of the page, and what the report says is below the fold."""
    expect(verdict(front, "Report")).to_contain_text("Leakage: prompts without the trigger")
    told = dict.fromkeys(KINDS, "")
    for kind in KINDS:
        expect(verdict(front, kind)).not_to_be_empty()
        shown = figures(front, kind)
        told[kind] = shown.inner_text()
        assert shown.evaluate(SMALLEST) >= 11, kind
        press(shown, "All figures")
        expect(shown.locator(".loom-measure-words")).to_be_visible()
        assert shown.evaluate(SMALLEST) >= 11, kind
        press(shown, "All figures")
    assert f"Strong overlap: ink & oil and {HOSTILE} pull the same way." in told["Interference"]
    assert re.search(r"C\s*<img .*\+0\.\d\d", told["Interference"], re.DOTALL)
    assert told["MergeLora"].startswith("Nothing is lost: 8 layers of rank 24, 0.1 MB as fp16.")
    assert told["Health"].startswith("Not sound: 1 broken, of 8 layers.")
    assert "Strength by block, beside the base model" in told["Health"]
    assert told["Passport"].startswith("signed: signed by ink@ada")
    for text in ("Contract", HOSTILE, "CC-BY-4.0", "Signature", "texts signed"):
        assert text in told["Passport"]
    assert told["LeaveOneOut"].startswith("The picture changes most without ")
    assert front.page.locator(".loom-thumb img[src*='/view?']").count() > 0
    assert front.page.locator("img[src=x]").count() == 0


def test_a_heat_map_is_read_with_the_keyboard(front: FrontEnd) -> None:
    shown = figures(front, "Interference")
    cell = shown.locator("td[tabindex='0']").first
    focus(front, cell)
    expect(cell).to_have_accessible_name(re.compile("ink & oil and chalk, all blocks: cosine"))
    front.page.keyboard.press("ArrowDown")
    told = shown.locator(".loom-told").first
    expect(told).to_have_text(re.compile(re.escape(f"ink & oil and {HOSTILE}, all blocks: cosine +0.")))
    front.page.keyboard.press("ArrowRight")
    expect(told).to_have_text(re.compile(re.escape(f"chalk and {HOSTILE}, all blocks: ")))


def test_they_open_large(front: FrontEnd) -> None:
    shown = figures(front, "LeaveOneOut")
    press(shown, "Open large")
    dialog = front.page.locator("dialog.loom-large")
    expect(dialog.locator("table").first).to_contain_text("chalk")
    expect(dialog.locator(".loom-measure-words")).to_contain_text("same noise (latent, pixels, structure)")
    dialog.locator(".loom-thumb").nth(1).click()
    picture = front.page.get_by_role("dialog", name="Picture")
    expect(picture.get_by_role("status")).to_contain_text("2 of 5: ")
    front.page.keyboard.press("ArrowRight")
    expect(picture.get_by_role("status")).to_contain_text("3 of 5: ")
    for left in (1, 0):
        front.page.keyboard.press("Escape")
        expect(dialog).to_have_count(left)


def test_size_and_error_follow_the_inputs(front: FrontEnd) -> None:
    """What is said before a run is what the run says. What other inputs would give is not known, and that is said."""
    shown, state = verdict(front, "MergeLora"), figures(front, "MergeLora").locator(".loom-state")
    first = shown.inner_text()
    expect(state).to_be_hidden()
    change(front, "MergeLora", rank=9)
    expect(state).to_have_text("With these settings; not run yet.")
    expect(shown).to_have_text(re.compile(r"[\d.]+ % of the sum is lost: 8 layers of rank 9, 0.0 MB as fp16."))
    equal = shown.inner_text()
    change(front, "MergeLora", rank=0)
    expect(state).to_be_hidden()
    expect(shown).to_have_text(first)
    curve = figures(front, "MergeLora").locator(".loom-curve")
    focus(front, curve)
    for key in ("Home", "Enter"):
        front.page.keyboard.press(key)
    expect(shown).to_contain_text("8 layers of rank 1, ")
    expect(curve).to_be_focused()
    rows = "<lora:measured/ink & oil:0.25>\n<lora:measured/chalk:1:off>"
    both = [["MergeLora", {"rank": 9, "strengths": "0.5"}], ["LoadLoraStack", {"rows": rows}]]
    front.page.evaluate(f"(all) => all.forEach({SET})", both)  # at once: what is between them has figures, too
    expect(shown).not_to_have_text(equal)
    expect(shown).to_contain_text("8 layers of rank 9, ")
    expect(state).to_have_text("With these settings; not run yet.")
    ahead = shown.inner_text()
    change(front, "MergeLora", amount=0.5)
    expect(state).to_contain_text("Other inputs changed since the last run")
    change(front, "MergeLora", amount=1.0)
    expect(state).to_have_text("With these settings; not run yet.")
    front.run()
    expect(state).to_be_hidden()
    expect(shown).to_have_text(ahead)
    change(front, "MergeLora", size_mb=1e-6)
    expect(state).to_contain_text("is too small for 8 layers")
    change(front, "MergeLora", size_mb=0.0, strengths="1")
    expect(state).to_have_text("Size and error at these settings are known after a run.")
    change(front, "MergeLora", strengths="0.5")
    expect(state).to_be_hidden()


def test_they_are_there_again(front: FrontEnd) -> None:
    """After an undo, after a reload of the page when nothing is computed again, and inside a subgraph."""
    page, before = front.page, verdict(front, "MergeLora").inner_text()
    change(front, "MergeLora", rank=2)
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    expect(verdict(front, "MergeLora")).to_have_text(before)
    saved = front.serialized()
    page.reload()
    page.wait_for_function("() => window.app?.vueAppReady && window.app.isGraphReady", timeout=120_000)
    front.settle()
    front.load_workflow(saved)
    expect(figures(front, "MergeLora")).to_contain_text("Run once")
    front.run()
    for kind in KINDS:
        expect(verdict(front, kind)).not_to_be_empty()
    expect(verdict(front, "MergeLora")).to_have_text(before)
    page.evaluate(f"() => {{ app.canvas.graph.convertToSubgraph(new Set([({NODE})('Report')])) }}")
    front.run()
    page.evaluate("() => app.canvas.setGraph(app.graph.nodes.find((node) => node.subgraph).subgraph)")
    expect(verdict(front, "Report")).to_contain_text("prompts without the trigger")
    page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
