"""The real front end in a real browser, without a window: Chromium or Chrome of the system, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Playwright,
    Request,
    TimeoutError,
    expect,
    sync_playwright,
)

from harness.server import ComfyServer, Graph

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHANNELS = {  # where Playwright finds a browser that is not on the PATH
    "chrome": (
        "/Applications/Google Chrome.app",
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    ),
    "msedge": (r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe", "/Applications/Microsoft Edge.app"),
}
FLAGS = [
    "--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a route would have each request wait for Python
]  # fmt: skip
VIEWPORT = {"width": 1600, "height": 900}
PATIENCE = 60  # seconds: a busy machine with two cores is slow, and only what is wrong never comes
expect.set_options(timeout=1000 * PATIENCE)

T = TypeVar("T")

# What a clean front end 1.47 without a network puts in the console; every other error counts.
QUIET_404 = ("/user.css", "/api/userdata", "/api/workflow_templates/", "/docs/")
QUIET_TEXT = (
    "ComfyApp graph accessed before initialization",
    "net::ERR_NAME_NOT_RESOLVED",
)
# Front end 1.58, once in many times, when a graph is replaced that has a node with connected sockets that grow.
OF_A_NODE_THAT_IS_GONE = "Attempted to access LGraph reference that was null or undefined"
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the Templates dialog covers the page
    "Comfy.Workflow.Persist": False,
    "Comfy.Graph.CanvasInfo": False,  # the frame rate in a corner
}


EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}  # a workflow


class NoBrowserError(RuntimeError):
    pass


def launch_options(playwright: Playwright) -> dict[str, Any]:
    """Return how to start the browser this machine has; raises NoBrowserError."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable:
        return {"executable_path": executable}
    for channel, places in CHANNELS.items():
        if any(Path(place).exists() for place in places):
            return {"channel": channel}
    if Path(playwright.chromium.executable_path).exists():
        return {}
    raise NoBrowserError(
        "no Chromium, Chrome or Edge was found: install one, or let Playwright: python -m playwright install chromium"
    )


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Mind: while it is open, asyncio.run() does not work in the same thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(headless=True, args=FLAGS, **launch_options(playwright))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browser_or_skip() -> Iterator[Browser]:
    """As `open_browser`; without a browser tests are skipped, but for continuous integration, which must have one."""
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_browser())
        except NoBrowserError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        yield opened


class FrontEnd:
    """One page of a server's front end, ready for clicks. `errors` holds what it said in the console that it should not
    have, `external` the addresses outside the server that it asked for, none of which it got."""

    def __init__(
        self, browser: Browser, server: ComfyServer, vue: bool = False, scale: float = 1, language: str = "en"
    ) -> None:
        """vue: the renderer of "Nodes 2.0" in place of the LiteGraph canvas. scale: device pixels per CSS pixel."""
        self.server = server
        self.errors: list[str] = []
        self.external: list[str] = []
        chosen = {"Comfy.VueNodes.Enabled": vue, "Comfy.Locale": language}
        server.post("/settings", {**SETTINGS, **chosen})  # they live on the server
        self._context = browser.new_context(viewport=VIEWPORT, locale="en-US", device_scale_factor=scale)
        self._context.on("request", self._guard)
        self._context.set_default_timeout(1000 * PATIENCE)
        self.page: Page = self._context.new_page()
        self.page.on("console", self._note)
        self.page.on("pageerror", self._failed)
        self.page.goto(server.url)
        self.page.wait_for_function("() => window.app?.vueAppReady && window.app.isGraphReady", timeout=120_000)
        self.settle()

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.close()

    # -- graphs --------------------------------------------------------------------------------------------------------

    def load_workflow(self, workflow: dict[str, Any]) -> None:
        """Opens a workflow in the UI format; raises AssertionError if the server lacks one of its nodes."""
        self.page.evaluate("async (w) => { await app.loadGraphData(w) }", workflow)
        self.page.wait_for_function("(n) => app.graph.nodes.length === n", arg=len(workflow["nodes"]))
        self.settle()
        missing = sorted({node["type"] for node in workflow["nodes"]} - set(self.node_types()))
        assert not missing, f"missing nodes: {missing}"

    def node_types(self) -> list[str]:
        """Types of the nodes in the graph that the front end knows."""
        known = "t => t in LiteGraph.registered_node_types"
        return self.page.evaluate(f"() => app.graph.nodes.map(n => n.type).filter({known})")

    def drop_workflow(self, text: str, name: str = "workflow.json") -> None:
        """Drops a file on the canvas as a person would; the graph comes a moment later."""
        self.settle()  # a second mask that starts while the first fades out stays for good, and swallows every click
        transfer = self.page.evaluate_handle(
            "([text, name]) => { const d = new DataTransfer();"
            " d.items.add(new File([text], name, {type: 'application/json'})); return d }",
            [text, name],
        )
        place = {"dataTransfer": transfer, "clientX": 800, "clientY": 700, "bubbles": True, "cancelable": True}
        self.page.dispatch_event("#graph-canvas", "drop", place)
        self.settle()

    def graph_to_prompt(self) -> Graph:
        """Return the API format of the graph on the page, as the Run button would send it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def serialized(self) -> dict[str, Any]:
        """Return the UI format of the graph on the page, as it would be saved: what JSON leaves out, which Playwright
        would hand over as null, is not there."""
        return json.loads(self.page.evaluate("() => JSON.stringify(app.graph.serialize())"))

    def run(self) -> None:
        """Clicks the Run button, and returns when the server has taken the graph or refused it."""
        with self.page.expect_response(
            lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")
        ):
            self.page.get_by_test_id("queue-button").click()

    def search(self) -> Locator:
        """Double-clicks the empty graph and returns the field of the node search. Clicks that a busy machine has torn
        apart are two clicks, which do nothing, and are made again."""
        box = self.page.get_by_role("dialog").locator("input").first
        for wait in (PATIENCE / 6, PATIENCE / 3, PATIENCE):
            self.drawn()
            self.page.mouse.dblclick(700, 600)
            with suppress(TimeoutError):
                box.wait_for(timeout=1000 * wait)
                return box
        raise AssertionError("a double click on the empty graph opens no search")

    # -- looks ---------------------------------------------------------------------------------------------------------

    def screenshot_graph(self, path: Path, margin: int = 40, width: int = 1600) -> None:
        """The whole graph and nothing else, all panels hidden, `width` CSS pixels wide; the suffix sets the format."""
        left, top, w, h = self._bounds()
        scale = (width - 2 * margin) / w
        self.page.set_viewport_size({"width": width, "height": round(h * scale) + 2 * margin})
        style = self.page.add_style_tag(content=BARE_CANVAS)
        self.page.evaluate(LOOK_AT, [margin / scale - left, margin / scale - top, scale])
        self.page.wait_for_timeout(1000)  # pictures on nodes, text areas that follow the canvas
        kind: dict[str, Any] = {"type": "jpeg", "quality": 88} if path.suffix in (".jpg", ".jpeg") else {}
        self.page.screenshot(path=path, **kind)
        style.evaluate("element => element.remove()")
        self.page.set_viewport_size(VIEWPORT)

    def _bounds(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of all nodes and groups, in graph coordinates, titles included."""
        return tuple(self.page.evaluate(BOUNDS))

    def settle(self) -> None:
        """Waits for the full-page mask that start-up and every drop show to be gone, or hidden, as with other packs."""
        self.page.locator(".p-blockui-mask >> visible=true").first.wait_for(state="detached")

    def drawn(self) -> None:
        """Waits until the graph has been drawn as it is now: what a node shows, and where, comes with a frame."""
        self.page.evaluate(DRAWN)

    def still(self) -> None:
        """Waits until no node has changed its place or size for half a second of the page's own time."""
        self.page.evaluate(STILL)

    def becomes(self, read: Callable[[], T], wanted: T) -> None:
        """Waits until `read()` gives that; raises AssertionError with what it gave last."""
        end = time.monotonic() + PATIENCE
        while (found := read()) != wanted:
            assert time.monotonic() < end, f"{found!r}, not {wanted!r}"
            self.page.wait_for_timeout(50)

    # -- guards --------------------------------------------------------------------------------------------------------

    def _guard(self, request: Request) -> None:
        if not request.url.startswith((self.server.url, "data:", "blob:")):
            self.external.append(request.url)

    def _failed(self, error: Error) -> None:
        if OF_A_NODE_THAT_IS_GONE not in str(error):
            self.errors.append(f"page error: {error}")

    def _note(self, message: ConsoleMessage) -> None:
        address = message.location.get("url", "")
        expected = any(text in message.text for text in QUIET_TEXT) or "/missingModel" in address
        expected |= "404" in message.text and any(part in address for part in QUIET_404)
        if message.type == "error" and not expected:
            self.errors.append(f"{message.text} ({address})")


DRAWN = """async () => {
  app.canvas.setDirty(true, true)
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
}"""

STILL = """async () => {
  const box = ({x, y, width, height}) => [x, y, width, height]
  const boxes = () => JSON.stringify([
    app.graph.nodes.map(node => [...node.getBounding()]),
    [...document.querySelectorAll('[data-node-id]')].map(each => box(each.getBoundingClientRect())),
  ])
  for (let last, same = 0; same < 10; ) {
    await new Promise(then => setTimeout(then, 50))
    const now = boxes()
    same = now === last ? same + 1 : 0
    last = now
  }
}"""

BOUNDS = """() => {
  const boxes = [...app.graph.nodes.map(n => n.getBounding()), ...(app.graph.groups ?? []).map(g => g._bounding)]
  const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]))
  const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]))
  return [left, top, right - left, bottom - top]
}"""

LOOK_AT = """([x, y, scale]) => {
  const view = app.canvas.ds
  app.canvas.deselectAll()
  view.scale = scale; view.offset[0] = x; view.offset[1] = y
  app.canvas.resize(); app.canvas.setDirty(true, true)
}"""

# Tabs, side bar, Run button, mini map and messages lie in layers of their own over the canvas.
BARE_CANVAS = """
#graph-canvas-container > .z-999, #graph-canvas-container > .z-999 *, #vue-app .no-drag, .comfy-menu, .node-tooltip,
.p-toast, .selection-toolbox { visibility: hidden !important }
"""
