"""The dialog that chooses LoRAs, with three thousand of them, in both renderers of the front end, as a person uses it."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.browser import EMPTY, VIEWPORT, FrontEnd
from harness.contrast import expect_readable, themes
from harness.server import ComfyServer
from playwright.sync_api import Locator, Page, expect

COUNT = 3000
SAYS = {"SDXL": "stable-diffusion-xl-v1-base", "FLUX.1 dev": "flux-1-dev", "": ""}
FOLDERS = ("many/styles/ink", "many/styles/oil", "many/people", "many")
HOSTILE = "<img src=x onerror=window.hit=1>"
KEPT = Path("user") / "default" / "lora_loom_picker.json"


def lora(about: dict[str, str], rank: int = 1) -> bytes:
    """A sound file of a few hundred bytes."""
    size = 16 * rank
    layer, shapes = "lora_unet_x.lora_", {"down": [rank, 8], "up": [8, rank]}
    tensors = {
        f"{layer}{part}.weight": {"dtype": "F16", "shape": shape, "data_offsets": [size * at, size * (at + 1)]}
        for at, (part, shape) in enumerate(shapes.items())
    }
    header = json.dumps({"__metadata__": about, **tensors}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(2 * size)


def write_many(root: Path) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        family = list(SAYS)[number % 3]
        about = {"modelspec.architecture": SAYS[family], "modelspec.trigger_phrase": f"sks{number}"}
        path = root / FOLDERS[number % 4] / f"lora_{number:04}.safetensors"
        path.write_bytes(lora(about if family else {}))
    people = root / "many/people"
    (people / "zz_big.safetensors").write_bytes(lora({}, rank=64))
    (people / "zz_broken.safetensors").write_bytes(b"<html>not found</html>")
    (people / "zz_side.safetensors").write_bytes(lora({}))
    (people / "zz_side.civitai.info").write_text(json.dumps({
        "trainedWords": ["brush, wet paper", HOSTILE], "baseModel": "Illustrious", "creator": {"username": "ada"},
        "model": {"name": HOSTILE, "allowDerivatives": False}, "description": f"<p>Best at 0.7</p>{HOSTILE * 2}",
    }))  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _files(server: ComfyServer) -> Iterator[None]:
    """In place of those that other tests have left."""
    root = server.base / "models" / "loras"
    aside = root.rename(root.with_name("loras_aside"))
    write_many(root)
    yield
    shutil.rmtree(root)
    aside.rename(root)


@pytest.fixture(scope="module", autouse=True)
def _nothing_kept(vue: bool, server: ComfyServer) -> None:
    (server.base / KEPT).unlink(missing_ok=True)


@pytest.fixture(scope="module", name="front")
def _empty(front: FrontEnd) -> FrontEnd:
    front.load_workflow(EMPTY)
    return front


CHOOSE = """async ([current, family, adds]) => {
    const { choose } = await import('/extensions/lora-loom/js/library/picker.js')
    app.testAdded = []
    app.testPicked = undefined
    const add = adds ? (name) => app.testAdded.push(name) : null
    choose(current, { family, add }).then((name) => { app.testPicked = name })
}"""
ALL_READ = """async (count) => {
    const { loras } = await import('/extensions/lora-loom/js/library/library.js')
    return loras().length >= count && loras().every((lora) => lora.size || lora.fault)
}"""


@pytest.fixture
def picker(front: FrontEnd) -> Iterator[Page]:
    """The open dialog, all files read; it is closed afterwards, and the page as wide as it was."""
    yield opened(front)
    close(front)
    front.page.set_viewport_size(VIEWPORT)


def opened(front: FrontEnd, current: str = "", family: str = "", adds: bool = False) -> Page:
    front.page.evaluate(CHOOSE, [current, family, adds])
    front.becomes(lambda: front.page.evaluate(ALL_READ, COUNT), True)
    expect(front.page.locator("dialog.loom-picker")).to_be_visible()
    return front.page


def close(front: FrontEnd) -> None:
    front.page.evaluate("() => document.querySelector('dialog.loom-picker')?.close()")
    expect(front.page.locator("dialog.loom-picker")).to_have_count(0)


def reopened(front: FrontEnd, **options: Any) -> Page:
    close(front)
    return opened(front, **options)


def shown(page: Page) -> list[str]:
    """The names in sight or near it, in their order."""
    return page.evaluate("""() => [...document.querySelectorAll('.loom-option')]
        .sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map((each) => each.querySelector('.loom-bare').textContent)""")


def selected(page: Page) -> Locator:
    return page.locator(".loom-option[aria-selected=true]")


def expect_selected(page: Page, name: str) -> None:
    expect(selected(page).locator(".loom-bare")).to_have_text(name)
    active = page.locator(".loom-search").get_attribute("aria-activedescendant")
    assert selected(page).get_attribute("id") == active


def place(page: Page, name: str) -> Locator:
    return page.get_by_role("treeitem", name=re.compile(rf"^{name} [\d,]+$"))


def sort(page: Page, words: str) -> None:
    page.get_by_label("Sorted by").select_option(label=words)


def test_all_of_them_are_there_and_few_are_drawn(picker: Page) -> None:
    """To the last one, by key and by wheel; a reader of the screen is told how many there are, and which this is."""
    expect(picker.locator(".loom-count")).to_have_text("3,003")
    expect_selected(picker, "lora_0000")
    picker.locator(".loom-options").focus()
    picker.keyboard.press("End")
    expect_selected(picker, "zz_side")
    expect(selected(picker)).to_be_in_viewport()
    assert selected(picker).get_attribute("aria-posinset") == selected(picker).get_attribute("aria-setsize") == "3003"
    picker.keyboard.press("Home")
    picker.keyboard.press("PageDown")
    picker.keyboard.press("PageUp")
    picker.keyboard.press("ArrowDown")
    expect_selected(picker, "lora_0001")
    picker.locator(".loom-options").hover()
    for wheel in range(1, 6):
        picker.mouse.wheel(0, 20_000)
        picker.wait_for_function(
            "(top) => document.querySelector('.loom-options').scrollTop >= top", arg=20_000 * wheel
        )
        expect(picker.locator(".loom-bare", has_text=f"lora_{20_000 * wheel // 46 + 5:04}")).to_have_count(1)
        assert 10 < len(shown(picker)) < 80
    picker.get_by_role("button", name="Pictures").click()
    picker.locator(".loom-options").focus()
    picker.keyboard.press("End")
    expect_selected(picker, "zz_side")
    picker.keyboard.press("ArrowLeft")
    expect_selected(picker, "zz_broken")
    assert 10 < picker.locator(".loom-option").count() < 120
    picker.get_by_role("button", name="List").click()


def test_search_places_models_and_order(front: FrontEnd, picker: Page) -> None:
    page = picker
    page.locator(".loom-search").fill("sks1234")
    expect(page.locator(".loom-option")).to_have_count(1)
    expect_selected(page, "lora_1234")
    page.locator(".loom-search").fill("illustrious ada")
    expect_selected(page, "zz_side")
    page.locator(".loom-search").fill("")
    place(page, "people").click()
    expect(page.locator(".loom-count")).to_have_text("753 found")
    place(page, "styles").click()
    place(page, "oil").click()
    expect(page.locator(".loom-count")).to_have_text("750 found")
    front.becomes(lambda: shown(page)[:2], ["lora_0001", "lora_0005"])
    sort(page, "Largest")
    page.get_by_role("button", name="in many/styles/oil/: take this filter off").click()
    expect_selected(page, "lora_0001")
    page.locator(".loom-options").focus()
    page.keyboard.press("Home")
    expect_selected(page, "zz_big")
    sort(page, "Name")
    page.get_by_label("Models").select_option(label="FLUX.1 dev (1,000)")
    expect(page.locator(".loom-count")).to_have_text("2,003 found")  # those of no known family may fit
    page.locator(".loom-search").fill("nothing of that name")
    expect(page.locator(".loom-empty")).to_have_text("Nothing found here.")
    page.locator(".loom-search").fill("sks0")
    expect(page.locator(".loom-empty")).to_contain_text("Look everywhere (1)")
    page.get_by_role("button", name="Look everywhere").click()
    expect_selected(page, "lora_0000")


def test_it_begins_with_what_fits_the_model(front: FrontEnd, picker: Page) -> None:
    """The file that was chosen so far is marked; one click takes the filter off."""
    page = reopened(front, current="many/lora_0003", family="SDXL")
    expect(page.locator(".loom-chip")).to_have_text("fits your model: SDXL")
    expect(page.locator(".loom-count")).to_have_text("2,003 found")
    assert shown(page)[:3] == ["lora_0000", "lora_0002", "lora_0003"]
    expect_selected(page, "lora_0003")
    expect(selected(page)).to_contain_text("chosen now")
    expect(page.get_by_role("treeitem", name="All 2,003")).to_be_visible()
    page.locator(".loom-chip").click()
    expect(page.locator(".loom-count")).to_have_text("3,003")
    expect(page.locator(".loom-search")).to_be_focused()
    expect_selected(page, "lora_0003")


def test_what_lies_beside_a_file_is_told_as_text(front: FrontEnd, picker: Page) -> None:
    page = picker
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=front.server.url)
    page.locator(".loom-search").fill("zz_side")
    detail = page.get_by_role("region", name="About this LoRA")
    expect(detail.locator(".loom-word")).to_have_text(["brush, wet paper", HOSTILE])
    expect(detail).to_contain_text("from Civitai Helper")
    for text in ("Illustrious", "ada", "no merges", "Best at 0.7"):
        expect(detail).to_contain_text(text)
    expect(detail.locator(".loom-title")).to_have_text(HOSTILE)
    detail.locator(".loom-word").first.click()
    expect(page.get_by_text("Copied: brush, wet paper")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == "brush, wet paper"
    page.locator(".loom-search").fill("zz_broken")
    expect(selected(page)).to_contain_text("cannot be used")
    expect(selected(page).locator(".loom-fault svg")).to_be_visible()
    expect(detail.locator(".loom-fault")).to_contain_text("download it again")
    assert page.evaluate("() => window.hit") is None and page.locator("dialog img").count() == 0


def test_favourites_use_and_looks_are_kept(front: FrontEnd, picker: Page) -> None:
    """Over a reload, in the user's folder of the server; a file of nonsense there changes nothing."""
    page, kept = picker, front.server.base / KEPT
    page.locator(".loom-search").fill("lora_0042")
    expect_selected(page, "lora_0042")
    page.locator(".loom-options").focus()
    page.keyboard.press("f")
    expect(selected(page)).to_contain_text("favourite")
    page.locator(".loom-search").fill("lora_0007")
    expect_selected(page, "lora_0007")
    page.get_by_role("button", name="lora_0007 is a favourite").click()
    expect(page.get_by_role("button", name="lora_0007 is a favourite", pressed=True)).to_be_focused()
    page.get_by_role("button", name="Choose", exact=True).click()
    page.wait_for_function("() => app.testPicked === 'many/lora_0007.safetensors'")
    page = opened(front, adds=True)
    page.get_by_role("button", name="Pictures").click()
    page.locator(".loom-search").fill("lora_0100")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    front.becomes(
        lambda: saved(kept).get("used"), {"many/lora_0007.safetensors": 1, "many/styles/ink/lora_0100.safetensors": 2}
    )
    front.becomes(lambda: saved(kept).get("view"), "grid")

    page.reload()
    page.wait_for_function("() => window.app?.vueAppReady && window.app.isGraphReady", timeout=120_000)
    front.settle()
    front.load_workflow(EMPTY)
    page = opened(front)
    place(page, "Favourites").click()
    front.becomes(lambda: shown(page), ["lora_0007", "lora_0042"])
    expect(page.get_by_role("button", name="Pictures", pressed=True)).to_be_visible()
    place(page, "Recently used").click()
    front.becomes(lambda: shown(page), ["lora_0100", "lora_0007"])
    page.get_by_role("button", name=re.compile("^recently used")).click()
    sort(page, "Most used")
    front.becomes(lambda: shown(page)[:3], ["lora_0100", "lora_0007", "lora_0000"])
    sort(page, "Name")
    page.get_by_role("button", name="List").click()
    front.becomes(lambda: (saved(kept).get("view"), saved(kept).get("sort")), ("list", "name"))
    close(front)
    kept.write_text('{"favourites": [1], "recent": {"a": 2}, "used": {"x": "<b>", "__proto__": 3}, "view": 5}')
    page = opened(front)
    expect(place(page, "Favourites")).to_contain_text("0")
    kept.unlink()


def saved(path: Path) -> dict[str, Any]:
    """The file, which may be half written while it is looked at."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def test_three_rows_are_added_without_closing(front: FrontEnd, picker: Page) -> None:
    """By key, by button and by click; a row's own file is replaced by one."""
    page = picker
    close(front)
    page.evaluate("""() => {
        const node = LiteGraph.createNode('LoraLoom_LoadLoraStack')
        app.graph.add(node)
        node.pos = [400, 250]
        app.canvas.ds.scale = 1; app.canvas.ds.offset[0] = 0; app.canvas.ds.offset[1] = 0
        app.canvas.setDirty(true, true)
    }""")
    page.locator(".loom-add").click()
    search = page.locator(".loom-search")
    for name, add in (("lora_0001", "Shift+Enter"), ("lora_0002", "button"), ("lora_0003", "click")):
        search.fill(name)
        expect_selected(page, name)
        if add == "button":
            page.get_by_role("button", name=f"Add {name} and stay").click()
        elif add == "click":
            selected(page).click(modifiers=["Shift"])
        else:
            search.press(add)
        expect(selected(page)).to_contain_text("added")
    expect(page.get_by_text("3 added, last lora_0003")).to_be_visible()
    page.get_by_role("button", name="Done").click()
    expect(page.locator("dialog.loom-picker")).to_have_count(0)
    text = "() => app.graph.nodes[0].widgets.find((widget) => widget.name === 'rows').value"
    rows = ["<lora:many/styles/oil/lora_0001:1>", "<lora:many/people/lora_0002:1>", "<lora:many/lora_0003:1>"]
    assert page.evaluate(text).splitlines() == rows
    page.locator(".loom-row .loom-name").first.click()
    expect_selected(page, "lora_0001")
    expect(page.get_by_role("button", name="Add lora_0001 and stay")).to_have_count(0)
    search.fill("zz_side")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("dialog.loom-picker")).to_have_count(0)
    assert page.evaluate(text).splitlines()[0] == "<lora:many/people/zz_side:1>"
    front.load_workflow(EMPTY)


def test_by_keyboard_alone(front: FrontEnd, picker: Page) -> None:
    """Every control comes once in the order of the page, the tree is one stop, letters in the list go to the search."""
    page = picker
    focused = "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    stops = ["Search LoRAs"]
    while len(stops) < 12 and (len(stops) < 2 or stops[-1] != "Close"):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(focused))
    assert stops[1:5] == ["Models", "Sorted by", "List", "Pictures"] and stops[5].startswith("All")
    assert stops[6:] == ["LoRAs", "Choose", "lora_0000 is a favourite", "sks0", "Close"]
    place(page, "All").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    expect(place(page, "people")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(place(page, "many")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(place(page, "people")).to_have_count(0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    expect(place(page, "styles")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".loom-count")).to_have_text("1,500 found")
    expect(place(page, "ink")).to_be_visible()
    page.locator(".loom-options").focus()
    page.keyboard.type("0040")
    expect(page.locator(".loom-search")).to_have_value("0040")
    expect_selected(page, "lora_0040")
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.testPicked === 'many/styles/ink/lora_0040.safetensors'")
    page = opened(front)
    page.keyboard.press("Escape")
    page.wait_for_function("() => app.testPicked === null")


WIDE = """() => [...document.querySelectorAll('dialog.loom-picker *')].filter((each) => each.checkVisibility()
    && !each.closest('.loom-unseen, svg, .loom-options') && each.getBoundingClientRect().right > innerWidth + 1).length"""


DRAWN_ANEW = """async () => {
    let count = 0
    const observer = new MutationObserver((all) => (count += all.length))
    observer.observe(document.querySelector('.loom-options'), {childList: true, subtree: true})
    for (let frame = 0; frame < 20; frame++) await new Promise(requestAnimationFrame)
    observer.disconnect()
    return count
}"""


def test_on_a_phone_one_pane_is_seen(front: FrontEnd, picker: Page) -> None:
    page = picker
    page.set_viewport_size({"width": 412, "height": 860})
    places, about = page.get_by_role("tree"), page.get_by_role("region", name="About this LoRA")
    expect(places).to_be_hidden()
    expect(about).to_be_hidden()
    first = page.locator(".loom-option").first
    front.becomes(lambda: (first.bounding_box() or {"width": 0})["width"] > 380, True)
    front.becomes(lambda: page.evaluate(DRAWN_ANEW), 0)
    assert first.locator(".loom-bare").bounding_box()["width"] > 60 and page.evaluate(WIDE) == 0
    page.get_by_role("button", name="Where").click()
    place(page, "people").click()
    expect(places).to_be_hidden()
    expect(page.locator(".loom-chip")).to_have_text("in many/people/")
    page.get_by_role("button", name="About lora_0006").click()
    expect(about).to_contain_text("sks6")
    assert page.evaluate(WIDE) == 0
    page.get_by_role("button", name="Back to the list").click()
    page.locator(".loom-option", has_text="lora_0006").click()
    page.wait_for_function("() => app.testPicked === 'many/people/lora_0006.safetensors'")


def test_all_of_it_can_be_read(front: FrontEnd, picker: Page) -> None:
    page = reopened(front, current="many/people/zz_side", family="SDXL", adds=True)
    page.locator(".loom-search").fill("zz_")
    expect(page.locator(".loom-option")).to_have_count(3)
    page.keyboard.press("Shift+Enter")
    expect(page.get_by_text("1 added")).to_be_visible()
    for _ in themes(front, "dialog.loom-picker"):
        for name in ("zz_big", "zz_broken", "zz_side"):
            page.locator(".loom-option", has_text=name).hover()
            expect_selected(page, name)
            expect_readable(front, "dialog.loom-picker", 20)
