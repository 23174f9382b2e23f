"""Checks the list of runs in the side bar and the panel with one of them, in both renderers, on runs that were made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from demo import shapes
from harness.browser import FrontEnd
from harness.server import ComfyServer, Graph
from playwright.sync_api import Locator, Page, expect

from e2e import graphs

FOLDER = "e2e_panel"
FIRST, SECOND = "panel first", "panel second"
HOSTILE = "panel &lt;b&gt;\u00fc %41 $1"  # a name that a folder has on every system
PROMPT = "a red heart <img src=x onerror=document.title=1>"
LONG = 10_000  # steps


@pytest.fixture(scope="module", autouse=True)
def _pictures(server: ComfyServer) -> None:
    shapes.write_dataset(server.base / "input" / FOLDER, "heart", 4, 64, 0)


def graph_of(name: str, steps: int, **choices: Any) -> Graph:
    """With previews of a prompt that looks like markup, at steps 0, 2, ..."""
    graph = graphs.training(FOLDER, name, steps=steps, save_every=2, **choices)
    del graph["save"]
    graph["data"]["inputs"]["trigger"] = "heart"
    graph["shown"] = graphs.node(
        "LoraLoom_Previews", prompts=PROMPT, negative="", every=2, width=32, height=32, steps=1, cfg=1.0,
        sampler_name="euler", scheduler="simple", seed=5, strength=1.0,
    )  # fmt: skip
    graph["train"]["inputs"]["previews"] = ["shown", 0]
    return graph


def open_graph(front: FrontEnd, graph: Graph) -> None:
    front.page.evaluate("(graph) => app.loadApiJson(graph, 'panel')", graph)
    front.page.wait_for_function("(n) => app.graph.nodes.length === n", arg=len(graph))
    front.settle()


def trained(front: FrontEnd, graph: Graph) -> None:
    """As a person has it trained: with its workflow."""
    open_graph(front, graph)
    front.server.run(graph, workflow=front.serialized())


def folder(server: ComfyServer, name: str) -> Path:
    (found,) = (server.base / "output" / "lora_loom").glob(f"{name}-*")
    return found


@pytest.fixture(scope="module")
def page(front: FrontEnd, server: ComfyServer) -> Page:
    """The list beside two short runs, one of 10,000 steps, and one with a name that is none."""
    trained(front, graph_of(FIRST, 4))
    trained(front, graph_of(SECOND, 4, rank=8))
    first = folder(server, FIRST)
    for name in (f"{HOSTILE}-00000001", "panel long-00000002"):
        shutil.rmtree(first.parent / name, ignore_errors=True)
        shutil.copytree(first, first.parent / name)
    long = first.parent / "panel long-00000002"
    shutil.rmtree(long / "previews")
    lines = [{"step": n, "loss": 0.1 + 1 / n, "learning_rate": 1e-4, "time": 1.7e9 + n} for n in range(1, LONG + 1)]
    (long / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    front.page.locator(LIST_TAB).click()
    search(front.page, "panel")
    return front.page


LIST_TAB = ".lora-loom-runs-tab-button, [data-testid=lora-loom-runs-tab-button]"


def search(page: Page, words: str) -> None:
    """Other modules leave runs, too."""
    page.get_by_role("searchbox", name="Search runs").fill(words)


def option(page: Page, name: str) -> Locator:
    return page.locator(".loom-runs").get_by_role("option").filter(has_text=name)


def chosen(page: Page, name: str) -> Locator:
    """The panel with that run."""
    if option(page, name).get_attribute("aria-selected") != "true":
        option(page, name).click()
    panel = page.locator(".loom-panel")
    expect(panel.get_by_role("heading", name=name, exact=True)).to_be_visible()
    return panel


def pictured(page: Page) -> None:
    """Waits until all pictures of the list and the panel are there."""
    pictures = "[...document.querySelectorAll('.loom-runs-shot img, img.loom-runs-thumb')]"
    page.wait_for_function(f"() => {pictures}.every((image) => image.complete && image.naturalWidth > 0)")


def test_the_list_tells_of_each_run_as_text_and_is_used_with_the_keyboard(page: Page) -> None:
    expect(option(page, SECOND)).to_contain_text("Finished, 4 steps")
    expect(option(page, SECOND)).to_contain_text("rank 4 \u2192 8")
    expect(option(page, HOSTILE).locator(".loom-run-name")).to_have_text(HOSTILE)
    expect(option(page, SECOND).locator("img")).to_have_count(1)
    pictured(page)
    search(page, "4 8 panel second")
    expect(page.locator(".loom-runs").get_by_role("option")).to_have_count(1)
    search(page, "panel nothing")
    expect(page.get_by_text("No run has these words.")).to_be_visible()
    search(page, "panel")
    page.get_by_role("searchbox", name="Search runs").press("ArrowDown")
    options = page.get_by_role("listbox", name="Runs")
    expect(options).to_be_focused()
    page.keyboard.press("End")
    last = options.get_attribute("aria-activedescendant")
    assert last is not None
    (number, count) = [page.locator(f"[id='{last}']").get_attribute(f"aria-{name}") for name in ("posinset", "setsize")]
    assert number == count
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator(".loom-panel")).to_be_visible()
    expect(options.locator("[aria-selected=true]")).to_have_attribute("aria-posinset", "1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    expect(options.locator("[aria-checked=true]")).to_have_attribute("aria-posinset", "2")
    page.keyboard.press(" ")
    expect(options.locator("[aria-checked=true]")).to_have_count(0)


OPEN = "(id) => import('/extensions/lora-loom/js/runs/panel.js').then(({ openRun }) => openRun(id))"


def test_curves_lie_over_each_other_and_ten_thousand_steps_are_thinned(page: Page, server: ComfyServer) -> None:
    page.evaluate(OPEN, folder(server, FIRST).name)
    panel = page.locator(".loom-panel")
    expect(panel.get_by_role("heading", name=FIRST, exact=True)).to_be_visible()
    page.evaluate("() => app.extensionManager.bottomPanel.toggleBottomPanelTab('lora-loom-run')")
    expect(panel).to_be_hidden()
    panel = chosen(page, SECOND)
    option(page, FIRST).locator(".loom-check").click()
    option(page, "panel long").locator(".loom-check").click()
    names = panel.locator(".loom-chart-key .loom-chart-name")
    expect(names).to_have_text([SECOND, FIRST, "panel long"])
    curves = panel.locator(".loom-chart-box .loom-chart-curve:not(.loom-chart-faint)")
    expect(curves).to_have_count(3)
    dashes = "(curves) => curves.map((curve) => curve.getAttribute('stroke-dasharray'))"
    assert len(set(curves.evaluate_all(dashes))) == 3, "told apart by more than their colour"
    expect(curves.first).to_have_attribute("d", re.compile(r"^M.{1000}"))
    picture = panel.get_by_role("img", name="Loss")
    expect(picture).to_have_attribute("aria-label", re.compile(rf"^Loss, {LONG} steps: {SECOND} goes from "))
    width = picture.evaluate("(picture) => picture.clientWidth")
    assert curves.first.evaluate("(curve) => curve.getAttribute('d').split('L').length") <= 2 * width + 2
    picture.focus()
    page.keyboard.press("End")
    expect(panel.locator(".loom-runs-facts .loom-unseen")).to_have_text(
        re.compile(rf"^step 4: {SECOND} \S+, {FIRST} \S+")
    )
    panel = chosen(page, "panel long")
    picture.focus()
    page.keyboard.press("End")
    expect(panel.locator(".loom-runs-facts .loom-unseen")).to_have_text(f"step {LONG}: panel long 0.100")
    for name in (SECOND, FIRST):
        expect(option(page, name)).to_have_attribute("aria-checked", "false" if name == SECOND else "true")
    option(page, FIRST).locator(".loom-check").click()


WIPED = """async () => { // the stage has the shape of the pictures once they are there
    await Promise.all([...document.querySelectorAll('.loom-wipe-stage img')].map((image) => image.decode()))
    await new Promise(requestAnimationFrame)
}"""


def test_the_gallery_scrubs_all_prompts_and_wipes_two_pictures(page: Page) -> None:
    panel = chosen(page, SECOND)
    expect(panel.get_by_role("columnheader")).to_have_text(["", "base model", "step 4", "0", "2", "4"])
    expect(panel.get_by_role("rowheader")).to_have_text([f"with trigger{PROMPT}", re.compile("^without")])
    assert panel.locator("[src=x]").count() == 0 and page.title() != "1"
    slider = panel.get_by_role("slider", name="Step")
    slider.press("Home")
    expect(panel.get_by_role("columnheader").nth(2)).to_have_text("step 0")
    expect(panel.get_by_role("button", name="Step 0 was not kept")).to_be_disabled()
    slider.press("ArrowRight")
    expect(panel.get_by_role("button", name="Use step 2")).to_be_enabled()
    shots = panel.locator(".loom-gallery-now .loom-runs-shot")
    assert shots.evaluate_all("(shots) => shots.map((shot) => shot.dataset.step)") == ["2", "2"], "all rows"
    pictured(page)

    shots = panel.locator(".loom-runs-shot")
    shots.first.focus()
    page.keyboard.press("Enter")
    expect(shots.first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    line = panel.get_by_role("slider", name="Where the pictures are parted")
    expect(line).to_be_focused()
    expect(line).to_have_attribute("aria-valuenow", "50")
    expect(panel.locator(".loom-wipe-name")).to_have_text(["A base model", "B step 4"])
    page.keyboard.press("ArrowLeft")
    expect(line).to_have_attribute("aria-valuenow", "48")
    page.keyboard.press("End")
    expect(line).to_have_attribute("aria-valuenow", "100")
    page.evaluate(WIPED)
    box = panel.locator(".loom-wipe-stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.up()
    expect(line).to_have_attribute("aria-valuenow", re.compile("^2[456]$"))
    panel.get_by_role("button", name="Open large").click()
    expect(page.get_by_role("dialog", name="Two previews")).to_be_visible()
    line.press("Escape")
    expect(page.get_by_role("dialog", name="Two previews")).to_be_hidden()
    line.press("Escape")
    expect(line).to_be_hidden()
    expect(panel.locator(".loom-runs-shot[aria-pressed=true]")).to_have_count(0)


ROWS = """() => app.graph.nodes.filter((node) => node.type === 'LoraLoom_LoadLoraStack')
    .map((node) => node.widgets.find((widget) => widget.name === 'rows').value)"""


def test_a_step_is_put_on_the_stack_and_taken_off_again(page: Page, front: FrontEnd, server: ComfyServer) -> None:
    open_graph(front, graph_of(SECOND, 4, rank=8))
    panel = chosen(page, SECOND)
    panel.get_by_role("slider", name="Step").press("Home")
    panel.get_by_role("slider", name="Step").press("ArrowRight")
    panel.get_by_role("button", name="Use step 2").click()
    front.becomes(lambda: page.evaluate(ROWS), [f"<lora:{SECOND}_step_2:1>"])
    kept = folder(server, SECOND) / "step_000002.safetensors"
    (copy,) = (server.base / "models" / "loras").glob(f"{SECOND}_step_2*.safetensors")
    assert copy.stat().st_size == kept.stat().st_size
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    front.becomes(lambda: page.evaluate(ROWS), [])


STEPS = """() => app.graph.nodes.filter((node) => node.type === 'LoraLoom_TrainLora')
    .map((node) => node.widgets.find((widget) => widget.name === 'steps').value)"""
NAME = "() => app.extensionManager.workflow.activeWorkflow.filename"


def test_a_run_is_opened_again_and_with_more_steps(page: Page, front: FrontEnd) -> None:
    panel = chosen(page, SECOND)
    panel.get_by_role("button", name="Rerun").click()
    front.becomes(lambda: page.evaluate(NAME), f"{SECOND} again")
    front.becomes(lambda: page.evaluate(STEPS), [4])
    front.settle()
    panel.get_by_role("button", name="Continue with more steps").click()
    dialog = page.get_by_role("dialog").filter(has_text="Train how many in all?")
    expect(dialog.get_by_role("textbox")).to_have_value("8")
    dialog.get_by_role("textbox").fill("4")
    dialog.get_by_role("textbox").press("Enter")
    expect(page.get_by_text("4 is not a whole number above 4").first).to_be_visible()
    assert page.evaluate(NAME) == f"{SECOND} again"
    panel.get_by_role("button", name="Continue with more steps").click()
    dialog.get_by_role("textbox").fill("6")
    dialog.get_by_role("textbox").press("Enter")
    front.becomes(lambda: page.evaluate(NAME), f"{SECOND} again (2)")
    front.becomes(lambda: page.evaluate(STEPS), [6])


BADGE = "() => app.extensionManager.getSidebarTabs().find(({ id }) => id === 'lora-loom-runs').iconBadge"


def test_a_run_that_goes_on_is_on_top_and_is_paused(
    page: Page, front: FrontEnd, server: ComfyServer, vue: bool
) -> None:
    name = f"panel going {vue}"
    server.post_prompt(graph_of(name, 50_000))
    waits = server.post_prompt(graph_of("panel next", 7))
    card = page.locator(".loom-runs-card").filter(has_text=name)
    expect(card.locator(".loom-runs-card-line")).to_have_text(re.compile(r"^Step \d+ of 50000 .* left .* loss "))
    expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "0")
    expect(page.locator(LIST_TAB)).to_contain_text("0%")
    expect(page.get_by_role("list", name="Waiting in the queue")).to_contain_text("panel nextwaits, 7 steps")
    page.wait_for_function("() => document.querySelector('.loom-runs-card .loom-chart-curve')?.getAttribute('d')")
    server.post("/queue", {"delete": [waits]})
    expect(page.get_by_role("list", name="Waiting in the queue").get_by_role("listitem")).to_have_count(0)
    card.get_by_role("button", name=name).click()
    panel = page.locator(".loom-panel")
    expect(panel.get_by_role("button", name="Delete")).to_be_hidden()
    card.get_by_role("button", name="Pause and keep").click()
    expect(card).to_have_count(0)
    expect(option(page, name)).to_contain_text(re.compile("Stopped at \\d+ of 50000"))
    expect(panel.get_by_role("button", name="Delete")).to_be_visible()
    front.becomes(lambda: page.evaluate(BADGE), "")


def test_a_run_is_deleted_when_a_person_is_sure(page: Page, front: FrontEnd, server: ComfyServer) -> None:
    panel = chosen(page, HOSTILE)
    found = server.base / "output" / "lora_loom" / f"{HOSTILE}-00000001"
    expect(panel.locator(".loom-gallery-now .loom-runs-shot")).to_have_count(2)
    pictured(page)
    panel.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog").filter(has_text=f"Delete {HOSTILE}?")
    expect(dialog).to_contain_text(re.compile(r"\d [kM]B"))
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert found.is_dir()
    option(page, HOSTILE).click()
    page.keyboard.press("Delete")
    dialog.get_by_role("button", name="Delete").click()
    expect(option(page, HOSTILE)).to_have_count(0)
    front.becomes(found.exists, False)
    expect(option(page, FIRST)).to_have_count(1)
    expect(option(page, HOSTILE)).to_have_count(0)
    expect(panel.get_by_role("heading", name=HOSTILE)).to_have_count(0)
