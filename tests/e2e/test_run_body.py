"""Checks what Train LoRA shows of its run in the browser, in both renderers: before it, while it goes on, and after it."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from demo import shapes
from harness.browser import EMPTY, FrontEnd
from harness.contrast import expect_readable, themes
from harness.server import ComfyServer
from playwright.sync_api import Browser, Locator, expect

from e2e import graphs

FOLDER = "e2e_body"
HOSTILE = "<img src=x onerror=alert(1)> & <b>heart</b>"
STEPS = 20_000  # more than are ever done
SAMPLER = {"width": 64, "height": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "seed": 5}
Workflow = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _files(vue: bool, server: ComfyServer) -> None:
    """Four pictures, one of them without a caption. Nothing is known of other modules' runs."""
    paths = shapes.write_dataset(server.base / "input" / FOLDER, "heart", 4, 64, 0)
    paths[0].with_suffix(".txt").unlink(missing_ok=True)
    (server.base / "user" / "__lora_loom" / "model_needs.json").unlink(missing_ok=True)


def workflow(front: FrontEnd, name: str, steps: int, **choices: Any) -> Workflow:
    """A workflow that trains, as it would be saved."""
    graph = graphs.training(FOLDER, name, steps=steps, rank=0, alpha=0.0, learning_rate=0.0, targets="auto", **choices)
    graph["data"]["inputs"] |= {"trigger": HOSTILE}
    graph["shown"] = graphs.node("LoraLoom_Previews", prompts=HOSTILE, negative="", every=20, strength=1.0, **SAMPLER)
    graph["train"]["inputs"]["previews"] = ["shown", 0]
    del graph["save"]
    front.page.evaluate("([graph, name]) => app.loadApiJson(graph, name)", [graph, f"body {name}"])
    front.page.wait_for_function("(n) => app.extensionManager.workflow.activeWorkflow.path.includes(n)", arg=name)
    front.settle()
    return {**front.serialized(), "id": str(uuid.uuid4())}


NODE = """() => [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)
    .find((node) => node.comfyClass === 'LoraLoom_TrainLora')"""
IN_SIGHT = """() => {
    const { ds } = app.canvas
    ds.scale = 1
    const { left, bottom } = document.querySelector('.loom-body').getBoundingClientRect()
    ds.offset[0] += 500 - left
    ds.offset[1] += 800 - bottom
}"""
CHANGE = f"""(values) => {{
    for (const [name, value] of Object.entries(values)) {{
        const widget = ({NODE})().widgets.find((widget) => widget.name === name)
        widget.value = value
        widget.callback?.(value)
    }}
}}"""
TO_UNDO = f"""() => {{ // what of the node would be a step to undo
    const {{ activeState }} = app.extensionManager.workflow.activeWorkflow.changeTracker
    const now = JSON.parse(JSON.stringify(({NODE})().serialize()))
    const before = JSON.parse(JSON.stringify(activeState.nodes.find(({{ id }}) => id === now.id)))
    return Object.keys(now).filter((key) => JSON.stringify(now[key]) !== JSON.stringify(before[key]))
}}"""


FROM_SLIDER = f"""() => {{
    const [node, slider] = [({NODE})(), LiteGraph.createNode("LoraLoom_Slider")]
    app.graph.add(slider)
    slider.connect(0, node, node.findInputSlot("dataset"))
}}"""
NEARER = """() => {
    const { canvas } = app
    if (canvas.ds.scale < 1) {
        canvas.ds.scale = 1
        canvas.setDirty(true, true)
    }
    return true
}"""


def change(front: FrontEnd, **values: Any) -> None:
    front.page.evaluate(CHANGE, values)


def part(front: FrontEnd, name: str) -> Locator:
    return front.page.locator(f".loom-body-{name}")


def press(front: FrontEnd, name: str) -> None:
    """With the keyboard, wherever the canvas has the button."""
    button = front.page.locator(f".loom-body-buttons [name={name}]")
    front.becomes(
        lambda: front.page.evaluate(NEARER) and button.is_visible(), True
    )  # a graph opens in a view of its own
    button.focus()
    expect(button).to_be_focused()
    front.page.keyboard.press("Enter")


def says(front: FrontEnd, words: str, name: str = "headline") -> None:
    expect(part(front, name)).to_have_text(re.compile(words))


def test_before_a_run(front: FrontEnd, vue: bool) -> None:
    """Recipe, pictures and memory, as the graph has them now; the fields show what auto will choose."""
    front.load_workflow(workflow(front, f"before{vue}", 100))
    plan = part(front, "plan")
    says(front, "Ready to train")
    says(front, "4: 3 with captions, 1 with the trigger alone", "plan")
    says(
        front, "LoRA Loom's demo base: rank 8, alpha 8, learning rate 0.009, attention and feed-forward layers", "plan"
    )
    says(front, "each about 50 times", "plan")
    says(front, "GB.* free; the rest is known when the run starts", "plan")
    expect(plan.get_by_role("img", name="Warning")).to_have_count(2)  # as 64 pixels are few, too
    change(front, steps=10, rank=5)
    says(front, "each about 5 times; 50 to 100 is a usual start", "plan")
    says(front, "your own: rank 5", "plan")
    front.page.evaluate(
        "() => void app.canvas.graph.convertToSubgraph("
        "new Set(app.graph.nodes.filter((node) => node.comfyClass === 'UNETLoader')))"
    )
    change(front, rank=6)
    says(front, "demo base.*your own: rank 6", "plan")
    front.page.evaluate(f"() => ({NODE})().disconnectInput(0)")
    says(front, "auto is chosen for the model when the run starts", "plan")
    front.page.evaluate(FROM_SLIDER)
    says(front, "8, drawn by the base model.*each about 2.5 times", "plan")


def test_a_run_is_watched_left_and_come_back_to(
    front: FrontEnd, vue: bool, browser: Browser, server: ComfyServer
) -> None:
    name = f"body &lt;i&gt; {vue}"
    file = workflow(front, name, STEPS, save_every=0)
    front.load_workflow(file)
    says(front, "Ready")
    front.run()
    says(front, rf"\d+ of {STEPS}")
    says(front, r"\d:\d\d left", "beside")
    see_curve_and_previews(front)
    front.becomes(lambda: front.page.evaluate(f"() => Boolean(({NODE})().properties.lora_loom_run)"), True)
    front.becomes(lambda: front.page.evaluate(TO_UNDO), [])
    see_from_afar(front)
    with FrontEnd(browser, server, vue=vue) as other:
        other.load_workflow(file)
        says(other, rf"\d+ of {STEPS}")
        front.page.reload()
        front.page.wait_for_function("() => window.app?.vueAppReady && window.app.isGraphReady", timeout=120_000)
        front.settle()
        front.load_workflow(file)
        says(front, rf"\d+ of {STEPS}")
        press(other, "pause")
        for each in (front, other):
            says(each, rf"Stopped at \d+ of {STEPS}, kept")
            says(each, "Queue again to go on", "next")
        assert other.errors == []


def see_curve_and_previews(front: FrontEnd) -> None:
    page = front.page
    page.wait_for_function(
        "() => document.querySelector('.loom-body .loom-chart-picture .loom-chart-curve')?.getAttribute('d').includes('L')"
    )
    shot = part(front, "shot").first
    expect(shot).to_have_attribute("aria-label", re.compile(re.escape(HOSTILE)))
    page.wait_for_function("() => document.querySelector('.loom-body-shot img').naturalWidth > 0")
    page.evaluate(IN_SIGHT)
    page.locator(".loom-body .loom-chart-picture").focus()
    page.keyboard.press("Home")
    expect(page.locator(".loom-body .loom-chart-step")).to_have_text("step 1")
    press(front, "rate")
    expect(page.locator(".loom-body .loom-chart-legend")).to_contain_text("learning rate")
    shot.focus()
    page.keyboard.press("Enter")
    expect(part(front, "words")).to_contain_text(HOSTILE)
    page.keyboard.press("Escape")
    assert page.locator("img[src=x]").count() == 0
    expect(page.locator("[data-node-id] img[src^=blob]:visible")).to_have_count(0)  # the picture of the bar
    assert page.evaluate(f"() => ({NODE})().imgs") is None


def see_from_afar(front: FrontEnd) -> None:
    """The step, the time and the bar alone, in letters of 14 pixels and more."""
    front.page.evaluate("() => { app.canvas.ds.scale = 0.5; app.canvas.setDirty(true, true) }")
    far = part(front, "far")
    expect(far).to_be_visible()
    expect(far).to_have_text(re.compile(rf"\d+ / {STEPS}\d+:\d\d"))
    expect(far.locator(".loom-body-bar")).to_be_visible()
    expect(part(front, "headline")).to_be_hidden()
    assert far.evaluate("(element) => parseFloat(getComputedStyle(element).fontSize)") * 0.5 >= 14
    front.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.setDirty(true, true) }")
    expect(far).to_be_hidden()


def test_what_comes_of_it(front: FrontEnd, vue: bool, server: ComfyServer) -> None:
    """It goes on where it stopped, is done, is used, and is there the next morning."""
    page = front.page
    reached = int(part(front, "headline").inner_text().split()[2])
    change(front, steps=reached + 3)
    says(front, "Ready to train")
    says(front, rf"Last run: Stopped at {reached} of {STEPS}", "next")
    says(front, "needs .* of .* free, as last time", "plan")
    front.run()
    says(front, "Done in")
    says(front, f"{reached + 3} steps", "beside")
    press(front, "report")
    expect(page.locator(".loom-dialog-text table").first).to_be_visible()
    page.keyboard.press("Escape")
    press(front, "folder")
    says(front, r"output/lora_loom/body &lt;i&gt; \w+-[0-9a-f]{8}", "said")
    for _ in themes(front, ".loom-body"):
        page.locator(".loom-body-notes summary").focus()
        expect_readable(front, ".loom-body-near", 5)
    stack = "app.graph.nodes.find((node) => node.comfyClass === 'LoraLoom_LoadLoraStack')"
    press(front, "use")
    page.wait_for_function(f"() => {stack}?.widgets.find(({{ name }}) => name === 'rows').value.includes('<lora:')")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function(f"() => !{stack}")
    says(front, "Done in")
    press(front, "compare")
    expect(page.locator(".loom-panel")).to_be_visible()
    page.evaluate("() => app.extensionManager.bottomPanel.toggleBottomPanelTab('lora-loom-run')")
    saved = {**front.serialized(), "id": str(uuid.uuid4())}
    front.load_workflow(EMPTY)
    front.load_workflow(saved)
    says(front, "Done in")
    change(front, exclude="*")
    front.run()
    says(front, "This did not work")
    expect(page.locator(".loom-body .loom-report")).to_be_visible()
    expect(page.locator(".loom-body .loom-report")).to_contain_text("select none of the model's")


def test_inside_a_subgraph(front: FrontEnd, vue: bool) -> None:
    """The body inside tells it all; the node of the subgraph how far it is, and in the canvas what came of it."""
    page, outer = front.page, "app.rootGraph.nodes.find((node) => node.subgraph)"
    badges = f"() => {outer}.badges.map((badge) => (badge.text === undefined ? badge() : badge).text).join()"
    front.load_workflow(workflow(front, f"inner{vue}", STEPS, save_every=0))
    page.evaluate(f"() => {{ app.canvas.graph.convertToSubgraph(new Set([({NODE})()])) }}")
    front.still()
    seen = page.locator(f'[data-node-id="{page.evaluate(f"() => {outer}.id")}"]')
    bars = seen.locator('[style^="width"][style*="%"]')  # of fields, too
    before = bars.count()
    front.run()
    if vue:  # which tells it by itself
        expect(seen).to_have_class(re.compile("executing|outline-primary"))
        expect(bars).to_have_count(before + 1)
    else:
        front.becomes(lambda: bool(re.search(r"\d+ % \u00b7 \d+:\d\d", page.evaluate(badges))), True)
    page.evaluate(f"() => app.canvas.setGraph({outer}.subgraph)")
    says(front, rf"\d+ of {STEPS}")
    press(front, "pause")
    says(front, "Stopped at")
    page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
    front.becomes(lambda: "%" in page.evaluate(badges), False)
    if not vue:
        expect(page.locator(".loom-report").filter(has_text="saved in output/lora_loom/inner").first).to_be_attached()
