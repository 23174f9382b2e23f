"""The list of rows on Load LoRA Stack, in both renderers of the front end, as a person uses it."""

from __future__ import annotations

import io
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.browser import EMPTY, FrontEnd
from harness.server import ComfyServer
from lora_loom.lora_core.stack.rows import parse
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from safetensors.torch import load_file, save_file

from e2e import graphs

LAYER = "blocks.0.self_attn.q"
HOSTILE = "<img src=x onerror=window.hit=1>"
FILES = {"rows/ink": "sks wash", "rows/oil": "impasto", "rows/deep/ada": HOSTILE}


@pytest.fixture(scope="module", autouse=True)
def _files(server: ComfyServer) -> Iterator[None]:
    demo = Path(__file__).parents[1] / "demo" / "models" / "diffusion_models" / "loom_demo.safetensors"
    width = load_file(demo)[f"{LAYER}.weight"].shape[0]
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    cover = "data:image/png;base64," + b64encode(picture.getvalue()).decode()
    for seed, (name, words) in enumerate(FILES.items()):
        path = server.base / "models" / "loras" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"diffusion_model.{LAYER}.lora_down.weight": torch.randn(4, width, generator=generator),
            f"diffusion_model.{LAYER}.lora_up.weight": torch.randn(width, 4, generator=generator),
        }
        about = {"modelspec.trigger_phrase": words, "modelspec.title": words, "modelspec.thumbnail": cover}
        save_file(tensors, path, about)
    yield
    shutil.rmtree(server.base / "models" / "loras" / "rows")


@pytest.fixture(name="front")
def _stack(front: FrontEnd) -> FrontEnd:
    """With an empty stack node and nothing else."""
    front.load_workflow(EMPTY)
    front.page.evaluate("""() => {
        const node = LiteGraph.createNode('LoraLoom_LoadLoraStack')
        app.graph.add(node)
        node.pos = [400, 250]
        app.canvas.ds.scale = 1; app.canvas.ds.offset[0] = 0; app.canvas.ds.offset[1] = 0
        app.canvas.setDirty(true, true)
    }""")
    expect(front.page.locator(".loom-add")).to_be_visible()
    return front


def text(front: FrontEnd) -> str:
    return front.page.evaluate("() => app.graph.nodes[0].widgets.find(w => w.name === 'rows').value")


def write(front: FrontEnd, rows: str) -> None:
    front.page.evaluate("(t) => { app.graph.nodes[0].widgets.find(w => w.name === 'rows').value = t }", rows)
    expect(front.page.locator(".loom-row")).to_have_count(rows.count("<lora:"))


def names(page: Page) -> list[str]:
    return page.locator(".loom-name .loom-bare").all_text_contents()


def add(page: Page, search: str) -> None:
    page.locator(".loom-add").click()
    page.locator(".loom-search").fill(search)
    expect(page.locator(".loom-option")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("dialog.loom-picker")).to_have_count(0)


def test_rows_are_added_changed_moved_and_kept(front: FrontEnd) -> None:
    page = front.page
    for search in ("rows ink", "impasto", "rows/deep"):
        add(page, search)
    assert text(front) == "<lora:rows/ink:1>\n<lora:rows/oil:1>\n<lora:rows/deep/ada:1>"
    page.get_by_role("switch", name="oil on").click()
    field = page.get_by_role("spinbutton", name="Model strength of ink")
    field.click()
    field.fill("0.8")
    field.press("Enter")
    page.get_by_role("spinbutton", name="Text strength of ink").focus()
    page.keyboard.press("ArrowDown")
    assert text(front).splitlines() == ["<lora:rows/ink:0.8:0.75>", "<lora:rows/oil:1:off>", "<lora:rows/deep/ada:1>"]

    front.still()
    grip, target = (
        page.get_by_role("button", name="Move ada;").bounding_box(),
        page.locator(".loom-row").first.bounding_box(),
    )
    page.mouse.move(grip["x"] + 5, grip["y"] + 10)
    page.mouse.down()
    page.mouse.move(grip["x"] + 5, target["y"] + 20, steps=4)
    page.mouse.move(grip["x"] + 5, target["y"] + 2, steps=4)
    page.mouse.up()
    front.becomes(lambda: names(page), ["ada", "ink", "oil"])
    front.becomes(lambda: text(front).partition("\n")[0], "<lora:rows/deep/ada:1>")
    page.get_by_role("button", name="Move ada;").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert names(page) == ["ink", "oil", "ada"]
    page.get_by_role("button", name="Choose another file for oil").focus()
    page.keyboard.press("Delete")
    assert names(page) == ["ink", "ada"] and page.evaluate("() => app.graph.nodes.length") == 1

    front.still()
    strength = page.get_by_role("spinbutton", name="Model strength of ada").bounding_box()
    page.mouse.move(strength["x"] + 20, strength["y"] + 10)
    page.mouse.down()
    page.mouse.move(strength["x"] + 20 - 25, strength["y"] + 10, steps=5)
    page.mouse.up()
    page.mouse.wheel(0, -100)
    page.wait_for_function("() => app.canvas.ds.scale > 1")
    front.becomes(lambda: text(front).splitlines(), ["<lora:rows/ink:0.8:0.75>", "<lora:rows/deep/ada:0.8>"])
    kept = text(front)
    saved = front.serialized()
    values = saved["nodes"][0]["widgets_values"]
    assert kept in values and None not in values, "a widget that is not saved, before one that is, would shift it"
    front.load_workflow(saved)
    expect(page.locator(".loom-row")).to_have_count(2)
    assert text(front) == kept and names(page) == ["ink", "ada"]


TEXTS = [
    "a cat <lora:ink:0.5>, <lyco:b:off> best\n# <lora:no>\n<lora:a:unet=0.5:te=0>",
    "<lora:styles\\\\oil.safetensors:-.5:+0>\r\n<LORA:a:0.8:1:blocks=IN=0.5,MID=1:start=0.2:end=.8>",
    "<lora:a:mask=2>\n<lora:b:0.5:end=0.5:mask=-16:off>",
    "<lora:a:words=one%2C two%252C, sks:off>\n<lora:b:words=>\n<lora:a%2Cb:words=(c%3A1.2)>",
    "<lora:a:0.1:on>\n<lora:50%:1>\n<lora:a%3Ab%253A:1e-05:-20>\n<lora: x y :2:0.3>\n<lora:a:1:0.333333>",
]


def test_the_list_reads_text_as_the_server_does(front: FrontEnd) -> None:
    again = front.page.evaluate(
        """async (texts) => {
            const rows = await import('/extensions/lora-loom/js/page/rows.js')
            return texts.map(text => rows.print(rows.parse(text)))
        }""",
        TEXTS,
    )
    told = [[[(*row, vars(row)) for row in parse(text)] for text in texts] for texts in (TEXTS, again)]
    assert told[0] == told[1] and all(told[0])


def test_text_is_pasted_copied_and_shown(front: FrontEnd) -> None:
    page = front.page
    write(front, "<lora:rows/ink:1>")
    pasted = "a cat <lora:oil:0.5:0>, best <lora:rows/deep/ada:-1>"
    page.locator(".loom-name").focus()
    page.evaluate(
        """(text) => {
            const data = new DataTransfer()
            data.setData('text', text)
            document.activeElement.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))
        }""",
        pasted,
    )
    assert text(front).splitlines() == ["<lora:rows/ink:1>", "<lora:oil:0.5:0>", "<lora:rows/deep/ada:-1>"]
    page.get_by_role("button", name="Remove oil").click()
    assert names(page) == ["ink", "ada"]
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    expect(page.locator(".loom-row")).to_have_count(3)
    page.get_by_role("switch", name="oil on").click()
    assert text(front).splitlines()[1] == "<lora:oil:0.5:0:off>", "the list that is seen is the node's own"
    page.locator(".loom-text").click()
    area = page.locator("textarea:visible").first
    expect(area).to_have_value(text(front))
    area.fill("# mine\n<lora:rows/oil:2>")
    expect(page.locator(".loom-row:visible")).to_have_count(0)
    if page.evaluate("() => LiteGraph.vueNodesMode"):
        page.get_by_text("Show as list").click()
    else:
        page.evaluate("() => app.graph.nodes[0].widgets.find(w => w.name === 'rows_as_list').callback()")
    expect(page.locator(".loom-comment")).to_have_text("mine")
    front.becomes(lambda: names(page), ["oil"])
    assert text(front) == "# mine\n<lora:rows/oil:2>"


def test_the_picker_shows_trigger_and_picture_and_runs_no_markup(front: FrontEnd) -> None:
    page = front.page
    page.locator(".loom-add").click()
    page.locator(".loom-search").fill("wash")
    expect(page.locator(".loom-option")).to_have_count(1)
    expect(page.locator(".loom-word")).to_have_text("sks wash")
    page.wait_for_function("() => document.querySelector('img.loom-picture')?.naturalWidth === 64")
    page.locator(".loom-search").fill("deep")
    expect(page.locator(".loom-word")).to_have_text(HOSTILE)
    assert page.locator("dialog img:not(.loom-picture)").count() == 0 and page.evaluate("() => window.hit") is None
    page.keyboard.press("Escape")
    expect(page.locator("dialog.loom-picker")).to_have_count(0)
    assert text(front) == ""


def test_fields_of_an_old_workflow_become_rows(front: FrontEnd) -> None:
    old = front.serialized()
    values = ["rows/ink.safetensors", 0.5, 0.25, "None", 1, 1, "rows/oil.safetensors", -1, -1, "None", 1, 1]
    old["nodes"][0] |= {"widgets_values": values}
    front.load_workflow(old)
    expect(front.page.locator(".loom-row")).to_have_count(2)
    assert text(front) == "<lora:rows/ink:0.5:0.25>\n<lora:rows/oil:-1>"
    sent = next(iter(front.graph_to_prompt().values()))["inputs"]
    assert set(sent) == {"rows", "apply"}, "fields that say nothing would each be found fault with, where rows are"


def test_rows_by_link_are_sent_as_such(front: FrontEnd) -> None:
    page = front.page
    page.evaluate("""() => {
        const source = LiteGraph.createNode('PrimitiveStringMultiline')
        app.graph.add(source)
        const node = app.graph.nodes[0]
        source.connect(0, node, node.inputs.findIndex(i => i.name === 'rows'))
    }""")
    expect(page.locator(".loom-add")).to_be_hidden()
    prompt = front.graph_to_prompt()
    stack = next(node for node in prompt.values() if node["class_type"] == "LoraLoom_LoadLoraStack")
    assert prompt[stack["inputs"]["rows"][0]]["class_type"] == "PrimitiveStringMultiline"
    front.load_workflow(front.serialized())
    expect(page.locator(".loom-add")).to_be_hidden()
    page.evaluate("() => app.graph.nodes.find(n => n.comfyClass === 'LoraLoom_LoadLoraStack').disconnectInput('rows')")


def promoted(front: FrontEnd, slot: str) -> Locator:
    """The text field of an input that the only node, put into a subgraph, shows on it; of none where the front end
    shows no promoted text as a field."""
    front.page.evaluate(
        """(name) => {
        if (!app.graph.nodes[0].subgraph) app.canvas.graph.convertToSubgraph(new Set([app.graph.nodes[0]]))
        const host = app.graph.nodes[0], inner = host.subgraph.nodes[0]
        host.subgraph.addInput(name, 'STRING')
        host.subgraph.inputs.at(-1).connect(inner.inputs.find(i => i.name === name), inner)
    }""",
        slot,
    )
    front.drawn()
    front.still()
    return front.page.locator("textarea:visible")


def shows_promoted_text(front: FrontEnd) -> bool:
    """Whether this front end has a text field on a subgraph, for a node of ComfyUI's own."""
    front.load_workflow(EMPTY)
    front.page.evaluate("() => { app.graph.add(LiteGraph.createNode('CLIPTextEncode')) }")
    return promoted(front, "text").count() > 0


def test_in_a_subgraph_and_on_it(front: FrontEnd) -> None:
    """Inside a subgraph the list works; on it the rows are a text of each subgraph's own, in a field where the front
    end shows promoted texts in one."""
    page = front.page
    write(front, "<lora:rows/ink:0.5>")
    page.evaluate("() => { app.canvas.graph.convertToSubgraph(new Set([app.graph.nodes[0]])) }")

    def sent() -> str:
        (inputs,) = [node["inputs"] for node in front.graph_to_prompt().values()]
        return inputs["rows"]

    def held() -> str:
        return page.evaluate("() => app.graph.nodes[0].widgets.find(w => w.name === 'rows').value")

    assert sent() == "<lora:rows/ink:0.5>"
    area = promoted(front, "rows")
    assert held() == "<lora:rows/ink:0.5>"
    has_field = area.count() > 0
    if has_field:
        expect(area.first).to_have_value("<lora:rows/ink:0.5>")
        area.first.fill("<lora:rows/oil:0.25>")
    else:
        page.evaluate(
            "(t) => { app.graph.nodes[0].widgets.find(w => w.name === 'rows').value = t }", "<lora:rows/oil:0.25>"
        )
    assert sent() == held() == "<lora:rows/oil:0.25>"
    front.load_workflow(front.serialized())
    if has_field:
        expect(area.first).to_have_value("<lora:rows/oil:0.25>")
    assert sent() == held() == "<lora:rows/oil:0.25>"
    assert has_field == shows_promoted_text(front), "as the front end does it for its own nodes"


def test_report_and_faults_stand_on_the_node(front: FrontEnd) -> None:
    """Line by line, with what looks like markup; a fault is one, of the rows, and is gone when they are right."""
    page = front.page
    page.evaluate("""() => {
        const [stack] = app.graph.nodes
        for (const type of ['UNETLoader', 'PreviewAny']) app.graph.add(LiteGraph.createNode(type))
        const [, loader, sink] = app.graph.nodes
        loader.widgets[0].value = 'loom_demo.safetensors'
        loader.connect(0, stack, 0)
        stack.connect(3, sink, 0)
    }""")
    report, known = page.locator(".loom-report"), len(front.errors)
    vue = page.evaluate("() => LiteGraph.vueNodesMode")
    strength = 0.25 if vue else 0.5  # the server is that of both, and sends nothing again of what it kept
    expect(report).to_have_count(0) if vue else expect(report).to_be_hidden()
    for rows, words in (
        ("<lora:rows/ink:1:x=3>", "line 1, <lora:rows/ink:1:x=3>: x= is unknown"),
        (f"<lora:rows/ink:{strength}>", f"ink: 1 layers at {strength} / {strength}\n1 weights changed"),
    ):
        page.evaluate("(t) => { app.graph.nodes[0].widgets.find(w => w.name === 'rows').value = t }", rows)
        front.run()
        front.becomes(lambda words=words: words in report.inner_text(), True)  # as it is seen, line by line
        assert report.evaluate("e => e.classList.contains('loom-problem')") == ("x=" in rows)
        seen = "e => e.clientHeight >= 28 && e.scrollHeight <= e.clientHeight + 1"
        front.becomes(lambda seen=seen: report.evaluate(seen), True)  # all of it, once the node has grown
    assert len(front.errors) > known, "the refusal is in the console of the front end, too"
    del front.errors[known:]


def test_what_the_list_says_is_applied(front: FrontEnd, server: ComfyServer) -> None:
    write(front, "<lora:rows/ink:0.8>\n<lora:rows/oil:1:off>\n<lora:rows/deep/ada:-0.6>")
    inputs = next(iter(front.graph_to_prompt().values()))["inputs"]
    fields = {"rows/ink.safetensors": 0.8, "rows/deep/ada.safetensors": -0.6}
    by_fields, by_list = (graphs.stack(rows) for rows in (fields, {}))
    by_list["stack"]["inputs"] |= {key: value for key, value in inputs.items() if not isinstance(value, list)}
    off = pixels(server, graphs.stack({}))
    assert np.array_equal(pixels(server, by_fields), pixels(server, by_list))
    assert np.abs(pixels(server, by_list) - off).mean() > 0.5


def pixels(server: ComfyServer, graph: dict[str, Any]) -> np.ndarray:
    graph["picture"]["inputs"]["filename_prefix"] = str(id(graph))
    (image,) = server.run(graph)["outputs"]["picture"]["images"]
    return np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"), dtype=np.float32)
