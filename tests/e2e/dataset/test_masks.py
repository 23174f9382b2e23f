"""A mask is painted in ComfyUI's own mask editor, opened from the page of pictures, in both renderers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from harness.browser import FrontEnd
from harness.server import ComfyServer
from PIL import Image
from playwright.sync_api import Locator, Page, TimeoutError, expect

from .pages import REPEATS, card, closed, page_of, said

EDITOR = "[data-testid='mask-editor-root']"
PAINTED = "() => [...document.querySelectorAll('#maskEditorCanvasContainer canvas')].some((each) => each.matches('.z-30') && each.width && each.getContext('2d').getImageData(0, 0, each.width, each.height).data.some((value, at) => at % 4 === 3 && value))"
SIZED = "() => [...document.querySelectorAll('#maskEditorCanvasContainer canvas')].some((each) => each.matches('.z-30') && each.width === 300)"
GRAPH = "() => [app.graph.nodes.length, app.graph.last_node_id, app.canvas.selectedItems.size]"
OF_THE_NEXT = "() => app.nodeOutputs[app.graph.last_node_id + 1]?.images?.[0]?.filename"
STALE = "() => { app.nodeOutputs[app.graph.last_node_id + 1] = { images: [{ filename: 'gone.png', type: 'input', subfolder: '' }] } }"
STEPS = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
MASKS = "() => app.graph.nodes[0].widgets.find(({ name }) => name === 'masks').value"


def opened_editor(page: Locator, name: str) -> Page:
    """The mask editor, ready to paint in."""
    page.get_by_role("button", name=f"Paint what is learned of {name}").click()
    top = page.page
    expect(top.get_by_text("Paint what is to be learned")).to_be_visible()
    top.locator(f"{EDITOR} input[type=range]").first.wait_for()
    top.wait_for_function(SIZED)
    return top


def stroke(top: Page) -> None:
    """From left to right through the middle, again where the editor was not ready for the first."""
    for _ in range(5):
        drag(top)
        try:
            top.wait_for_function(PAINTED, timeout=5000)
            return
        except TimeoutError:
            pass
    top.wait_for_function(PAINTED)


def drag(top: Page) -> None:
    left, upper, width, height = top.locator("#maskEditorCanvasContainer").evaluate(
        "(each) => { const { x, y, width, height } = each.getBoundingClientRect(); return [x, y, width, height] }"
    )
    middle = upper + height / 2
    top.mouse.move(left + 0.3 * width, middle)
    top.mouse.down()
    top.mouse.move(left + 0.7 * width, middle, steps=6)
    top.mouse.up()


def ended(top: Page, button: str) -> None:
    top.get_by_role("button", name=re.compile(f"{button}$")).click()
    top.locator(EDITOR).wait_for(state="detached")


def learned(folder: Path) -> np.ndarray:
    return np.asarray(Image.open(folder / "c-mask.png"))


def test_a_mask_is_painted_undone_and_taken_up_again(front: FrontEnd, folder: Path, server: ComfyServer) -> None:
    page = page_of(front, folder)
    ours, before, steps = sorted(folder.iterdir()), front.page.evaluate(GRAPH), front.page.evaluate(STEPS)
    front.page.evaluate(STALE)  # as of a node that was undone
    top = opened_editor(page, "c.png")
    stroke(top)
    ended(top, "Cancel")
    expect(page).to_be_visible()
    assert sorted(folder.iterdir()) == ours and front.page.evaluate(GRAPH) == before
    assert front.page.evaluate(STEPS) == steps and not list((server.base / "input").rglob("clipspace-*"))
    stroke(opened_editor(page, "c.png"))
    ended(top, "Save")
    said(page, "Saved the mask of c.png:")
    said(page, "masks of the node is -mask files now")
    mask = learned(folder)
    assert mask.shape == (64, 300) and mask[32, 150] > 128 and mask[2].max() == mask[:, 5].max() == 0
    expect(card(page, "c.png").locator("img.loom-set-mask")).to_be_visible()
    expect(page.locator(".loom-set-file")).to_have_count(5)
    assert front.page.evaluate(GRAPH) == before and front.page.evaluate(OF_THE_NEXT) is None
    assert front.page.evaluate(MASKS) == "-mask files"
    assert front.page.evaluate(STEPS) == steps + 1, "what masks are read, and nothing else"
    assert not list((server.base / "input").rglob("clipspace-*")), "what the editor has left behind"
    page.get_by_role("button", name="Undo").click()
    said(page, "Undone: the mask of c.png")
    assert sorted(folder.iterdir()) == ours and front.page.evaluate(MASKS) == "off"
    page.get_by_role("button", name="Redo").click()
    said(page, "Done again: the mask of c.png")
    assert np.array_equal(learned(folder), mask) and front.page.evaluate(MASKS) == "-mask files"
    opened_editor(page, "c.png").wait_for_function(PAINTED)  # with what was painted before
    ended(top, "Save")
    said(page, "Saved the mask of c.png:")
    assert np.abs(learned(folder).astype(int) - mask).max() <= 1
    opened_editor(page, "c.png").get_by_role("button", name="Clear", exact=True).click()
    ended(top, "Save")
    said(page, "c.png has no mask: all of it is learned")
    assert not (folder / "c-mask.png").exists()
    closed(page)


def test_a_picture_is_opened_as_load_image(front: FrontEnd, folder: Path) -> None:
    page = page_of(front, folder)
    card(page, "a.png").hover()
    page.get_by_role("button", name="Load Image with a.png").click()
    said(page, "Load Image with a.png is on the graph")
    page.get_by_role("button", name="Close").click()
    sent = {each["class_type"]: each["inputs"] for each in front.graph_to_prompt().values()}
    assert sent["LoadImage"]["image"] == f"{folder.name}/a.png"
    front.page.wait_for_function(
        "() => app.graph.nodes.find(({ type }) => type === 'LoadImage').imgs?.[0]?.naturalWidth === 96"
    )
    front.page.locator("#graph-canvas").focus()
    front.page.keyboard.press("Control+z")
    front.becomes(lambda: front.page.evaluate("() => app.graph.nodes.length"), 1)
    assert front.page.evaluate(f"() => {REPEATS}.value") == 7
