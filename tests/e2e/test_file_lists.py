"""Fields that choose a LoRA file, in both renderers: the server tells the list once, every field has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.browser import EMPTY, FrontEnd
from harness.server import ComfyServer
from playwright.sync_api import Browser, expect

FIELDS = {
    "LoraLoom_ConvertLora": ["lora"],
    "LoraLoom_ResizeLora": ["lora_name"],
    "LoraLoom_TrainLora": ["continue_from"],
    "LoraLoom_LoadLoraStack": ["lora_1", "lora_2", "lora_3", "lora_4"],
}
EARLY, LATE = "lists/early.safetensors", "lists/late.safetensors"

NEW = """(types) => types.map((type) => {
  const node = LiteGraph.createNode(type)
  app.graph.add(node)
  return node.id
})"""
LISTED = """(types) => app.graph.nodes.flatMap((node) => node.widgets
  .filter((widget) => types[node.type]?.includes(widget.name))
  .map((widget) => [node.id, node.type, widget.name, widget.value, [...widget.options.values]]))"""
PLACE = """() => {
  const [node] = app.graph.nodes, canvas = app.canvas.canvas.getBoundingClientRect()
  const widget = node.widgets.find((each) => each.name === "lora_name")
  return [canvas.x + 300 + node.size[0] / 2, canvas.y + 200 + (widget.last_y ?? widget.y) + 10]
}"""


@pytest.fixture
def folder(server: ComfyServer) -> Iterator[Path]:
    """With one file that is there from the beginning. Nothing reads it."""
    found = server.base / "models" / "loras" / "lists"
    found.mkdir(parents=True)
    (found / "early.safetensors").touch()
    yield found
    for path in found.iterdir():
        path.unlink()
    found.rmdir()


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "vue"])
def test_every_field_has_the_list_and_refreshes_it(
    browser: Browser, server: ComfyServer, folder: Path, vue: bool
) -> None:
    with FrontEnd(browser, server, vue=vue) as front:
        page = front.page
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if "/lora_loom/loras" in request.url else None)
        page.evaluate("async (w) => { await app.loadGraphData(w) }", EMPTY)
        page.evaluate(NEW, list(FIELDS))
        fields = page.evaluate(LISTED, FIELDS)
        assert [[kind, name] for _, kind, name, *_ in fields] == [[k, n] for k, names in FIELDS.items() for n in names]
        check(fields, {EARLY})

        (folder / "late.safetensors").touch()
        page.locator("#graph-canvas").focus()
        page.keyboard.press("r")
        page.wait_for_function(
            "([listed, types, late]) => eval(listed)(types).every((field) => field[4].includes(late))",
            arg=[LISTED, FIELDS, LATE],
        )
        page.evaluate(NEW, list(FIELDS))
        fields = page.evaluate(LISTED, FIELDS)
        assert len(fields) == 14
        check(fields, {EARLY, LATE})
        assert "since" not in asked[0] and "?since=" in asked[-1], (
            "the picker's list is asked for once, then for changes"
        )
        choose(front, vue)
        assert front.errors == []


def check(fields: list[list[Any]], files: set[str]) -> None:
    """Each has the files once, and first None where a field may be without a file; its value is what it begins with."""
    for _, kind, name, value, options in fields:
        assert len(options) == len(set(options)) and {option for option in options if "lists/" in option} == files, name
        assert value == options[0] and (options[0] == "None") == (kind != "LoraLoom_ConvertLora"), (kind, name)


def choose(front: FrontEnd, vue: bool) -> None:
    """As a person does, in the field of the first Resize LoRA; and the value is kept by a saved workflow."""
    page = front.page
    node = page.evaluate(
        """() => {
          const node = app.graph.nodes.find((each) => each.type === "LoraLoom_ResizeLora")
          app.graph.nodes.filter((each) => each !== node).forEach((each) => app.graph.remove(each))
          node.pos = [300, 200]
          Object.assign(app.canvas.ds, {scale: 1})
          app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0
          return node.id
        }"""
    )
    front.drawn()
    front.still()
    if vue:
        page.locator(f'[data-node-id="{node}"]').get_by_role("combobox").first.click()
        page.get_by_role("option", name="late").first.click()
    else:
        page.mouse.click(*page.evaluate(PLACE))
        page.locator(".litecontextmenu .litemenu-entry", has_text="late").first.click()
    value = "() => app.graph.nodes[0].widgets.find((widget) => widget.name === 'lora_name').value"
    page.wait_for_function(f"(late) => ({value})() === late", arg=LATE)
    saved = front.serialized()
    page.evaluate("async (w) => { await app.loadGraphData(w) }", saved)
    expect(page.locator("#graph-canvas")).to_be_visible()
    assert (
        page.evaluate(value) == LATE
        and front.serialized()["nodes"][0]["widgets_values"] == saved["nodes"][0]["widgets_values"]
    )
