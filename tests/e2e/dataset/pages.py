"""LoRA Dataset on a page of the front end, and the page of pictures and captions that it opens."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from harness.browser import FrontEnd
from PIL import Image
from playwright.sync_api import Locator, expect

HOSTILE = "&lt;b&gt; 'x' ${1} %2e.png"
SCRIPT = "<img src=x onerror=alert(1)> & <b>bold</b>"
CAPTIONS = {"a.png": "sks dog, grass", "b.png": "", "c.png": "sks", "d.png": "sks dog on a bench", HOSTILE: SCRIPT}
SIZES = {"a.png": (96, 64), "b.png": (64, 64), "c.png": (300, 64), "d.png": (64, 96), HOSTILE: (64, 64)}


def picture(size: tuple[int, int] = (64, 64)) -> bytes:
    data = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(data, "PNG")
    return data.getvalue()


REPEATS = "app.graph.nodes[0].widgets.find(({ name }) => name === 'repeats')"
REPEAT = f"""() => {{
    {REPEATS}.value = 7
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()
}}"""


def node(front: FrontEnd, folder: str = "", trigger: str = "sks") -> None:
    """A workflow with LoRA Dataset alone, in sight, and with a step that can be undone."""
    inputs = {"folder": folder, "trigger": trigger, "resolution": 64, "repeats": 1, "bucket_step": 16, "masks": "off"}
    graph = {"1": {"class_type": "LoraLoom_Dataset", "inputs": inputs}}
    front.page.evaluate("() => document.querySelectorAll('dialog[open]').forEach((each) => each.close())")
    front.page.evaluate("(graph) => app.loadApiJson(graph, 'set')", graph)
    front.settle()
    front.page.evaluate("() => { const { ds } = app.canvas; ds.scale = 1; ds.offset[0] = 100; ds.offset[1] = 100 }")
    front.page.evaluate(REPEAT)
    front.drawn()


def value(front: FrontEnd) -> str:
    return front.page.evaluate("() => app.graph.nodes[0].widgets.find(({ name }) => name === 'folder').value")


def opened(front: FrontEnd, folder: str, trigger: str = "sks") -> Locator:
    node(front, folder, trigger)
    front.page.get_by_role("button", name="Pictures and captions").click()
    return front.page.locator(".loom-set-page:not(.loom-set-describe)")


def page_of(front: FrontEnd, folder: Path, trigger: str = "sks") -> Locator:
    """The page of a folder, with all of its pictures looked at."""
    page = opened(front, folder.name, trigger)
    expect(page.locator(".loom-set-page-head .loom-set-dim")).to_have_text(
        f"{len(CAPTIONS)} pictures \u00b7 1 without a caption"
    )
    return page


def caption(page: Locator, name: str) -> Locator:
    return page.get_by_label(f"Caption of {name}", exact=True)


def shot(page: Locator, name: str) -> Locator:
    return page.get_by_label(f"Select {name}", exact=True)


def said(page: Locator, words: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(words)


def card(page: Locator, name: str) -> Locator:
    return page.get_by_role("group", name=name, exact=True)


def closed(page: Locator) -> None:
    """The graph behind it has heard none of the keys."""
    assert page.page.evaluate(f"() => [app.graph.nodes.length, {REPEATS}.value]") == [1, 7]
    page.get_by_role("button", name="Close").click()
    expect(page).to_have_count(0)


DROP = """(target, [files, text]) => {
    const dataTransfer = new DataTransfer()
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0))
        dataTransfer.items.add(new File([bytes], name))
    }
    const { left, top } = target.getBoundingClientRect()
    const at = { clientX: text ? text[0] : left + 20, clientY: text ? text[1] : top + 10 }
    for (const kind of ["dragover", "drop"]) {
        target.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true, ...at }))
    }
}"""


def drop(target: Locator, files: dict[str, bytes], at: list[float] | None = None) -> None:
    target.evaluate(DROP, [[(name, base64.b64encode(data).decode()) for name, data in files.items()], at])
