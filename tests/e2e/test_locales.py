"""Checks in a real front end that nodes and the page speak the language that is chosen there, in both renderers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from harness.browser import FrontEnd
from harness.locales import LANGUAGES, LOCALES, table
from harness.server import ComfyServer
from PIL import Image
from playwright.sync_api import Browser, expect

NODES = ("LoraLoom_TrainLora", "LoraLoom_LoadLoraStack")
ADD = """async ([types]) => {
  await app.loadGraphData({nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4, last_node_id: 0})
  types.forEach((type, column) => {
    const node = LiteGraph.createNode(type)
    node.pos = [column * 500, 0]
    app.graph.add(node)
  })
}"""
LABELS = """() => app.graph.nodes.map(({ title, widgets, inputs, outputs }) => ({
  title, widgets: widgets.map(each => each.label),
  inputs: inputs.map(each => each.localized_name), outputs: outputs.map(each => each.localized_name),
}))"""
FOLDER = """(folder) => {
  const field = app.graph.nodes[0].widgets.find(({ name }) => name === 'folder')
  field.value = folder
  field.callback(folder)
}"""
SAID = """(page) => [...page.querySelectorAll('*')].flatMap((each) => [
  each.getAttribute('aria-label'), each.placeholder, each.type === 'button' ? each.value : '',
  each.children.length || ['SCRIPT', 'STYLE'].includes(each.tagName) ? '' : each.textContent,
  each.matches('.loom-set-mark') ? '' : each.title,
]).filter(Boolean).map((each) => each.replaceAll('1.png', '').replaceAll('Ctrl', '').replaceAll('Shift', ''))"""
WORD = "async (text) => (await import('/extensions/lora-loom/js/page/words.js')).word(text)"


@pytest.fixture(scope="module", params=[(False, "ja"), (True, "zh")], ids=["classic", "vue"])
def spoken(request: pytest.FixtureRequest, browser: Browser, server: ComfyServer) -> Iterator[tuple[FrontEnd, str]]:
    """A page that was opened in a language, and that."""
    vue, language = request.param
    with FrontEnd(browser, server, vue=vue, language=language) as page:
        page.page.evaluate(ADD, [NODES])
        page.still()
        yield page, language
        assert page.errors == [] and page.external == []


def definitions(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_the_server_serves_what_is_in_the_files(server: ComfyServer) -> None:
    served = server.get("/i18n")
    for language in ("en", *LANGUAGES):
        assert definitions(language).items() <= served[language]["nodeDefs"].items()
    for language in LANGUAGES:
        assert served[language]["loraLoom"] == table(language)["words"]


def test_nodes_speak_it(spoken: tuple[FrontEnd, str]) -> None:
    """Titles, inputs and outputs; the names that are saved and sent, and the values, stay what they are."""
    page, language = spoken
    for shown, node in zip(page.page.evaluate(LABELS), NODES, strict=True):
        wanted = definitions(language)[node]
        assert shown["title"] == wanted["display_name"]
        groups = page.server.object_info[node]["input"].values()
        grow = {name for group in groups for name, (kind, *_) in group.items() if kind == "COMFY_AUTOGROW_V3"}
        told = {each["name"] for name, each in wanted["inputs"].items() if name not in grow}
        assert told <= set(shown["inputs"]), "sockets that grow keep names of their own"
        assert len(set(shown["inputs"]) - told) == len(grow)
        assert shown["outputs"] == [each["name"] for each in wanted["outputs"].values()]
    sent = page.graph_to_prompt()["1"]["inputs"]
    assert (sent["targets"], sent["learning_rate"], sent["resume"]) == ("auto", 0, "continue")


def test_our_own_words_are_in_it(spoken: tuple[FrontEnd, str]) -> None:
    page, language = spoken
    words = table(language)["words"]
    expect(page.page.locator(".loom-add")).to_have_text(words["+ Add LoRA"])
    expect(page.page.locator(".loom-rows .loom-empty")).to_have_text(
        words["No LoRA yet. Add one, or paste <lora:name:0.8> here."]
    )
    assert words["Show as list"] in page.page.evaluate(LABELS)[1]["widgets"]
    value = "() => app.graph.nodes[0].widgets.find(each => each.name === 'rank')._displayValue"
    assert page.page.evaluate(value) == words["auto, mostly 16"]


def test_the_page_of_a_data_set_is_in_it(spoken: tuple[FrontEnd, str], server: ComfyServer) -> None:
    """Whatever can be read or heard there, but for the names of files and what is said of marks."""
    page, language = spoken
    words = table(language)["words"]
    folder = server.base / "input" / "set_spoken"
    folder.mkdir(exist_ok=True)
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "1.png")
    page.page.evaluate(ADD, [["LoraLoom_Dataset"]])
    page.page.evaluate(FOLDER, folder.name)
    page.page.get_by_role("button", name=words["Pictures and captions"]).click()
    shown = page.page.locator(".loom-set-page")
    expect(shown.get_by_role("button", name=f"{words['no caption']} 1")).to_be_visible()
    shown.get_by_label(words["Select {name}"].format(name="1.png")).click()
    expect(shown.get_by_role("button", name=words["Take out"])).to_be_visible()
    said = shown.evaluate(SAID)
    assert len(said) > 30 and [each for each in said if re.search("[A-Za-z]{3}", each.replace(folder.name, ""))] == []
    page.page.keyboard.press("Escape")
    page.page.keyboard.press("Escape")


def test_a_page_without_a_translation_speaks_english(spoken: tuple[FrontEnd, str]) -> None:
    """And one whose language is changed speaks the new one in all that it says from then on."""
    page, _ = spoken
    assert page.page.evaluate(WORD, "in no table") == "in no table"
    for language, wanted in (("ko", table("ko")["words"]["Show as list"]), ("fr", "Show as list")):
        page.page.evaluate("(l) => app.extensionManager.setting.set('Comfy.Locale', l)", language)
        page.becomes(lambda: page.page.evaluate(WORD, "Show as list"), wanted)
