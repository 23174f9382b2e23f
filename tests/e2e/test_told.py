"""Checks what nodes tell in the browser, in both renderers: when, on which workflow, how long, and what is left."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from demo import shapes
from harness.browser import FrontEnd
from harness.server import ComfyServer
from playwright.sync_api import Browser

from e2e import graphs

FOLDER = "e2e_told"
Workflow = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _pictures(server: ComfyServer) -> None:
    shapes.write_dataset(server.base / "input" / FOLDER, "heart", 4, 64, 0)


@pytest.fixture(scope="module")
def file(front: FrontEnd, vue: bool) -> Workflow:
    """A workflow that trains, as it would be saved: its ids are the same however often it is opened."""
    graph = graphs.training(FOLDER, f"told{vue}", steps=4, seed=60 + vue, rank=0, alpha=0.0, learning_rate=0.0)
    del graph["save"]
    front.page.evaluate("(graph) => app.loadApiJson(graph, 'told')", graph)
    front.page.wait_for_function("() => app.extensionManager.workflow.activeWorkflow.path.includes('told')")
    front.settle()
    return {**front.serialized(), "id": str(uuid.uuid4())}


def opened(front: FrontEnd, file: Workflow) -> None:
    """As a workflow of its own, all of it in sight."""
    front.load_workflow(file)
    front.page.evaluate("() => { const { ds } = app.canvas; ds.scale = 0.5; ds.offset[0] = 0; ds.offset[1] = 100 }")


NODE = """(kind) => [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)
    .find((node) => node.comfyClass === `LoraLoom_${kind}`)"""
TOLD = f"""(kind) => {{
    const {{ element }} = ({NODE})(kind).widgets.find((widget) => widget.element?.matches('.loom-report, .loom-body'))
    const report = element.matches('.loom-report') ? element : element.querySelector('.loom-report')
    return element.checkVisibility() && report && !report.closest('[hidden]') ? report.textContent : ''
}}"""
CHANGE = f"""([kind, values]) => {{
    for (const [name, value] of Object.entries(values)) {{
        const widget = ({NODE})(kind).widgets.find((widget) => widget.name === name)
        widget.value = value
        widget.callback?.(value)
    }}
}}"""


def told(front: FrontEnd, kind: str = "TrainLora") -> str:
    """The text that is on a node, which on Train LoRA may be folded."""
    return front.page.evaluate(TOLD, kind)


def wait_told(front: FrontEnd, words: str, kind: str = "TrainLora", timeout: float = 180) -> str:
    end = time.monotonic() + timeout
    while words not in (text := told(front, kind)):
        assert time.monotonic() < end, f"{words!r} is not in {text!r}"
        front.page.wait_for_timeout(100)
    return text


def wait_silent(front: FrontEnd, kind: str = "TrainLora") -> None:
    """Until nothing is seen on a node any more; of what was never there, see `stays_silent`."""
    front.becomes(lambda: told(front, kind), "")


def stays_silent(front: FrontEnd, milliseconds: int, kind: str = "TrainLora") -> None:
    """After a while in which what must not come would have come, were it to; longer on a busy machine is no harm."""
    front.page.wait_for_timeout(milliseconds)
    assert told(front, kind) == ""


def change(front: FrontEnd, kind: str, **values: Any) -> None:
    """As typing does it."""
    front.page.evaluate(CHANGE, [kind, values])


SHOWN = """(field) => {
    const input = field.querySelector('input')
    return [getComputedStyle(field, '::after').content, getComputedStyle(input).color, input.value]
}"""


def field(front: FrontEnd, name: str) -> str:
    """Return what the field of a number of Train LoRA shows."""
    if not front.page.evaluate("() => LiteGraph.vueNodesMode"):
        widget = f"({NODE})('TrainLora').widgets.find((widget) => widget.name === '{name}')"
        return front.page.evaluate(f"() => {widget}._displayValue")
    shown = front.page.locator(f".lg-node-widget [aria-label='{name}'] div:has(> input)").first
    word, colour, number = shown.evaluate(SHOWN)
    if (colour == "rgba(0, 0, 0, 0)") != (word != "none"):
        return f"both {word} and {number}"
    return number if word == "none" else word.strip('"')


def test_zeros_show_what_they_stand_for(front: FrontEnd, file: Workflow, server: ComfyServer) -> None:
    words = front.page.evaluate("() => import('/extensions/lora-loom/js/told/zeros.js').then(({ WORDS }) => WORDS)")
    for kind, names in words.items():
        inputs = server.object_info[kind]["input"]
        numbers = {**inputs["required"], **inputs.get("optional", {})}
        assert all("0" in numbers[name][1]["tooltip"] and numbers[name][1]["min"] == 0 for name in names), kind
    opened(front, file)
    expect_field(front, "rank", "auto: 8")  # what suits the model that is connected
    expect_field(front, "learning_rate", "auto: 0.003")
    for typed, shown in (("6", "6"), ("0", "auto: 8")):
        type_rank(front, typed)
        expect_field(front, "rank", shown)
    values = front.serialized()
    front.load_workflow(values)
    expect_field(front, "alpha", "auto: 8")
    front.page.evaluate(f"() => ({NODE})('TrainLora').disconnectInput(0)")
    expect_field(front, "rank", "auto, mostly 16")
    expect_field(front, "alpha", "auto: as rank")
    front.load_workflow(values)
    (sent,) = [each for each in front.graph_to_prompt().values() if each["class_type"] == "LoraLoom_TrainLora"]
    assert {sent["inputs"][name] for name in ("rank", "alpha", "learning_rate")} == {0}


def type_rank(front: FrontEnd, typed: str) -> None:
    """With the keyboard where the field is an element; on the canvas, as its prompt does it."""
    if not front.page.evaluate("() => LiteGraph.vueNodesMode"):
        return change(front, "TrainLora", rank=int(typed))
    front.page.locator(".lg-node-widget [aria-label='rank'] div:has(> input)").first.click()
    front.page.keyboard.type(typed)
    front.page.keyboard.press("Tab")  # a field that has the focus shows its number


def expect_field(front: FrontEnd, name: str, words: str) -> None:
    front.becomes(lambda: field(front, name), words)


def test_a_result_is_there_and_in_a_fresh_browser(
    front: FrontEnd, file: Workflow, vue: bool, browser: Browser, server: ComfyServer
) -> None:
    opened(front, file)
    front.run()
    text = wait_told(front, "saved in output/lora_loom/told")
    assert "4 steps, loss" in text and "auto for LoRA Loom's demo base: rank 8" in text
    expect_field(front, "rank", "auto: 8")
    expect_field(front, "learning_rate", "auto: 0.003")
    wait_told(front, "4 images", "Dataset")
    with FrontEnd(browser, server, vue=vue) as other:
        opened(other, file)
        expect_field(other, "rank", "auto: 8")
        assert told(other) == ""
        other.run()
        assert wait_told(other, "saved in output/lora_loom/told") == text
        wait_told(other, "4 images", "Dataset")
        expect_field(other, "rank", "auto: 8")
        other.page.locator(".loom-body .loom-chart-picture .loom-chart-curve").first.wait_for(state="attached")
        assert other.errors == []


def test_it_belongs_to_its_workflow(front: FrontEnd, file: Workflow) -> None:
    """Not to another opening of the same file; an undo, a look at another tab and a change of the seed keep it."""
    page = front.page
    opened(front, file)
    front.run()
    text = wait_told(front, "saved in")
    change(front, "TrainLora", seed=1000)
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    wait_told(front, text)
    first = page.evaluate_handle("() => app.extensionManager.workflow.activeWorkflow")
    opened(front, file)
    stays_silent(front, 500)
    page.evaluate("(w) => app.loadGraphData(w.changeTracker.activeState, true, true, w)", first)
    wait_told(front, text)


def test_a_run_of_one_workflow_says_nothing_on_another(
    front: FrontEnd, file: Workflow, vue: bool, server: ComfyServer
) -> None:
    """It is cancelled, too: with the step that was reached, and that it goes on."""
    page = front.page
    opened(front, file)
    change(front, "TrainLora", steps=5000, run_name=f"long{vue}")
    first = page.evaluate_handle("() => app.extensionManager.workflow.activeWorkflow")
    front.run()
    wait_told(front, " of 5000, loss")
    opened(front, file)
    stays_silent(front, 2500)
    page.evaluate("(w) => app.loadGraphData(w.changeTracker.activeState, true, true, w)", first)
    wait_told(front, " of 5000, loss")
    page.reload()
    page.wait_for_function("() => window.app?.vueAppReady && window.app.isGraphReady", timeout=120_000)
    front.settle()
    opened(front, file)
    wait_told(front, " of 5000, loss")
    server.interrupt()
    text = wait_told(front, "of 5000, saved; queue again to continue")
    assert text.splitlines()[0].startswith("stopped at ") and "saved in output/lora_loom/long" in text


def test_an_error_ends_with_its_cause(front: FrontEnd, file: Workflow) -> None:
    page, known = front.page, len(front.errors)
    for kind, wrong, words, right in (
        ("Dataset", {"folder": "nowhere"}, "does not exist", {"folder": FOLDER}),
        ("TrainLora", {"exclude": "*"}, "select none of the model's", {"exclude": ""}),
        ("TrainLora", {"exclude": "*"}, "select none of the model's", None),
    ):
        opened(front, file)
        change(front, kind, **wrong)
        front.run()
        wait_told(front, words, kind)
        if right:
            change(front, kind, **right)
            wait_silent(front, kind)
        else:
            opened(front, file)
            stays_silent(front, 500, kind)
    del front.errors[known:]  # a refusal is in the console of the front end, too
    assert page.evaluate("() => (import('/scripts/api.js')).then(m => !Object.hasOwn(m.api, 'queuePrompt'))")


AT_ONCE = f"""async () => {{
    const {{ api }} = await import('/scripts/api.js')
    const pinia = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia
    const queue = (detail) => api.dispatchCustomEvent('promptQueued', detail)
    const say = (kind, detail) => api.dispatchCustomEvent(kind, {{ prompt_id: 'at once', ...detail }})
    const before = app.processingQueue
    app.processingQueue = true
    try {{
        const {{ workflow }} = app.extensionManager, {{ queuedJobs }} = pinia.state.value.execution
        const note = () => (queuedJobs['at once'] = {{ nodes: {{}}, workflow: workflow.activeWorkflow }})
        say('execution_start', {{}})
        note()
        queue({{ number: 1, batchCount: 1 }})
        const node_id = String(({NODE})('TrainLora').id)
        say('execution_error', {{ node_id, exception_message: 'failed at once', traceback: [] }})
        note() // what has ended is forgotten here, but known to the server
        await new Promise((then) => setTimeout(then, 500))
    }} finally {{
        app.processingQueue = before
        delete pinia.state.value.execution.queuedJobs['at once']
    }}
}}"""


def test_an_error_that_comes_at_once_stays(front: FrontEnd, file: Workflow) -> None:
    """The server's messages may come before the front end has noted whose prompt they are of."""
    opened(front, file)
    known = len(front.errors)
    front.page.evaluate(AT_ONCE)
    assert told(front) == "failed at once"
    del front.errors[known:]


ELSEWHERE = """async () => {
    const { api } = await import('/scripts/api.js')
    for (let at = 0; at < 4; at++) {
        api.dispatchCustomEvent('executed', { prompt_id: 'elsewhere', node: '1', output: { text: ['x'] } })
        await new Promise((then) => setTimeout(then, 400))
    }
}"""


def test_of_a_prompt_from_elsewhere_the_server_is_asked_once(front: FrontEnd, file: Workflow) -> None:
    opened(front, file)
    known, asked = len(front.errors), []
    front.page.on("request", lambda request: asked.append(request.url))
    front.page.evaluate(ELSEWHERE)
    assert [url for url in asked if "/jobs/" in url] == [f"{front.server.url}/api/jobs/elsewhere"]
    del front.errors[known:]  # the server does not know this one


def test_inside_a_subgraph(front: FrontEnd, file: Workflow) -> None:
    page = front.page
    opened(front, file)
    page.evaluate(f"() => {{ app.canvas.graph.convertToSubgraph(new Set([({NODE})('TrainLora')])) }}")
    front.run()
    page.evaluate("() => app.canvas.setGraph(app.graph.nodes.find((node) => node.subgraph).subgraph)")
    page.evaluate("() => { const { ds } = app.canvas; ds.scale = 0.5; ds.offset[0] = 0; ds.offset[1] = 100 }")
    wait_told(front, "saved in output/lora_loom/told")
    page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
