"""The dialog that chooses LoRAs, with three thousand of them, in both renderers of the front end, as a person uses it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from harness.browser import EMPTY, VIEWPORT, FrontEnd
from harness.contrast import expect_readable, themes
from harness.server import ComfyServer
from playwright.sync_api import Page, expect

from e2e import picking


@pytest.fixture(scope="module", autouse=True)
def _files(server: ComfyServer) -> Iterator[None]:
    """In place of those that other tests have left."""
    root = server.base / "models" / "loras"
    aside = root.rename(root.with_name("loras_aside"))
    picking.write_many(root)
    picking.write_list(server.base / picking.LIST)
    yield
    shutil.rmtree((server.base / picking.LIST).parent)
    shutil.rmtree(root)
    aside.rename(root)


@pytest.fixture(scope="module", autouse=True)
def _nothing_kept(vue: bool, server: ComfyServer) -> None:
    (server.base / picking.KEPT).unlink(missing_ok=True)


@pytest.fixture(scope="module", name="front")
def _empty(front: FrontEnd) -> FrontEnd:
    front.load_workflow(EMPTY)
    return front


@pytest.fixture
def picker(front: FrontEnd) -> Iterator[Page]:
    """The open dialog, all files read; it is closed afterwards, and the page as wide as it was."""
    yield picking.opened(front)
    picking.close(front)
    front.page.set_viewport_size(VIEWPORT)


def test_all_of_them_are_there_and_few_are_drawn(picker: Page) -> None:
    """To the last one, by key and by wheel; a reader of the screen is told how many there are, and which this is."""
    expect(picker.locator(".loom-count")).to_have_text("3,003")
    picking.expect_selected(picker, "lora_0000")
    picker.locator(".loom-options").focus()
    picker.keyboard.press("End")
    picking.expect_selected(picker, "zz_side")
    expect(picking.selected(picker)).to_be_in_viewport()
    assert (
        picking.selected(picker).get_attribute("aria-posinset")
        == picking.selected(picker).get_attribute("aria-setsize")
        == "3003"
    )
    for key in ("Home", "PageDown", "PageUp", "ArrowDown"):
        picker.keyboard.press(key)
    picking.expect_selected(picker, "lora_0001")
    picker.locator(".loom-options").hover()
    for wheel in range(1, 6):
        picker.mouse.wheel(0, 20_000)
        picker.wait_for_function(
            "(top) => document.querySelector('.loom-options').scrollTop >= top", arg=20_000 * wheel
        )
        expect(picker.locator(".loom-bare", has_text=f"lora_{20_000 * wheel // 46 + 5:04}")).to_have_count(1)
        assert 10 < len(picking.shown(picker)) < 80
    picker.get_by_role("button", name="Pictures").click()
    picker.locator(".loom-options").focus()
    picker.keyboard.press("End")
    picking.expect_selected(picker, "zz_side")
    picker.keyboard.press("ArrowLeft")
    picking.expect_selected(picker, "zz_broken")
    assert 10 < picker.locator(".loom-option").count() < 120
    picker.get_by_role("button", name="List").click()


def test_search_places_models_and_order(front: FrontEnd, picker: Page) -> None:
    page = picker
    search = page.locator(".loom-search")
    search.fill("sks1234")
    expect(page.locator(".loom-option")).to_have_count(1)
    picking.expect_selected(page, "lora_1234")
    page.locator(".loom-search").fill("illustrious ada")
    picking.expect_selected(page, "zz_side")
    page.locator(".loom-search").fill("")
    picking.place(page, "people").click()
    expect(page.locator(".loom-count")).to_have_text("753 found")
    picking.place(page, "styles").click()
    picking.place(page, "oil").click()
    expect(page.locator(".loom-count")).to_have_text("750 found")
    front.becomes(lambda: picking.shown(page)[:2], ["lora_0001", "lora_0005"])
    picking.sort(page, "Largest")
    page.get_by_role("button", name="in many/styles/oil/: take this filter off").click()
    picking.expect_selected(page, "lora_0001")
    page.locator(".loom-options").focus()
    page.keyboard.press("Home")
    picking.expect_selected(page, "zz_big")
    picking.sort(page, "Name")
    page.get_by_label("Models").select_option(label="FLUX.1 dev (1,000)")
    expect(page.locator(".loom-count")).to_have_text("2,003 found")  # those of no known family may fit
    page.locator(".loom-search").fill("nothing of that name")
    expect(page.locator(".loom-empty")).to_have_text("Nothing found here.")
    page.locator(".loom-search").fill("sks0")
    expect(page.locator(".loom-empty")).to_contain_text("Look everywhere (1)")
    page.get_by_role("button", name="Look everywhere").click()
    picking.expect_selected(page, "lora_0000")


def test_it_begins_with_what_fits_the_model(front: FrontEnd, picker: Page) -> None:
    """The file that was chosen so far is marked; one click takes the filter off."""
    page = picking.reopened(front, current="many/lora_0003", family="SDXL")
    expect(page.locator(".loom-chip")).to_have_text("fits your model: SDXL")
    expect(page.locator(".loom-count")).to_have_text("2,003 found")
    assert picking.shown(page)[:3] == ["lora_0000", "lora_0002", "lora_0003"]
    picking.expect_selected(page, "lora_0003")
    expect(picking.selected(page)).to_contain_text("chosen now")
    expect(page.get_by_role("treeitem", name="All 2,003")).to_be_visible()
    page.locator(".loom-chip").click()
    expect(page.locator(".loom-count")).to_have_text("3,003")
    expect(page.locator(".loom-search")).to_be_focused()
    picking.expect_selected(page, "lora_0003")


def test_what_lies_beside_a_file_is_told_as_text(front: FrontEnd, picker: Page) -> None:
    page = picker
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=front.server.url)
    page.locator(".loom-search").fill("zz_side")
    detail = page.get_by_role("region", name="About this LoRA")
    expect(detail.locator(".loom-word")).to_have_text(["brush, wet paper", picking.HOSTILE])
    expect(detail).to_contain_text("from Civitai Helper")
    for text in ("Illustrious", "ada", "no merges", "Best at 0.7"):
        expect(detail).to_contain_text(text)
    expect(detail.locator(".loom-title")).to_have_text(picking.HOSTILE)
    detail.locator(".loom-word").first.click()
    expect(page.get_by_text("Copied: brush, wet paper")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == "brush, wet paper"
    page.locator(".loom-search").fill("zz_broken")
    expect(picking.selected(page)).to_contain_text("cannot be used")
    expect(picking.selected(page).locator(".loom-fault svg")).to_be_visible()
    expect(detail.locator(".loom-fault")).to_contain_text("download it again")
    assert page.evaluate("() => window.hit") is None and page.locator("dialog img").count() == 0
    page.locator(".loom-search").fill("zz_big")
    expect(picking.selected(page)).to_contain_text("on a takedown list")
    expect(picking.selected(page)).to_contain_text("was withdrawn by its author, says Ada since 2026-11-30")


def test_favourites_use_and_looks_are_kept(front: FrontEnd, picker: Page) -> None:
    """Over a reload, in the user's folder of the server; a file of nonsense there changes nothing."""
    page, kept = picker, front.server.base / picking.KEPT
    page.locator(".loom-search").fill("lora_0042")
    picking.expect_selected(page, "lora_0042")
    page.locator(".loom-options").focus()
    page.keyboard.press("f")
    expect(picking.selected(page)).to_contain_text("favourite")
    page.locator(".loom-search").fill("lora_0007")
    picking.expect_selected(page, "lora_0007")
    page.get_by_role("button", name="lora_0007 is a favourite").click()
    expect(page.get_by_role("button", name="lora_0007 is a favourite", pressed=True)).to_be_focused()
    page.get_by_role("button", name="Choose", exact=True).click()
    page.wait_for_function("() => app.testPicked === 'many/lora_0007.safetensors'")
    page = picking.opened(front, adds=True)
    page.get_by_role("button", name="Pictures").click()
    page.locator(".loom-search").fill("lora_0100")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    front.becomes(
        lambda: picking.saved(kept).get("used"),
        {"many/lora_0007.safetensors": 1, "many/styles/ink/lora_0100.safetensors": 2},
    )
    front.becomes(lambda: picking.saved(kept).get("view"), "grid")

    page = picking.afresh(front)
    picking.place(page, "Favourites").click()
    front.becomes(lambda: picking.shown(page), ["lora_0007", "lora_0042"])
    expect(page.get_by_role("button", name="Pictures", pressed=True)).to_be_visible()
    picking.place(page, "Recently used").click()
    front.becomes(lambda: picking.shown(page), ["lora_0100", "lora_0007"])
    page.get_by_role("button", name=re.compile("^recently used")).click()
    picking.sort(page, "Most used")
    front.becomes(lambda: picking.shown(page)[:3], ["lora_0100", "lora_0007", "lora_0000"])
    picking.sort(page, "Name")
    page.get_by_role("button", name="List").click()
    front.becomes(lambda: (picking.saved(kept).get("view"), picking.saved(kept).get("sort")), ("list", "name"))
    picking.close(front)
    kept.write_text('{"favourites": [1], "recent": {"a": 2}, "used": {"x": "<b>", "__proto__": 3}, "view": 5}')
    page = picking.opened(front)
    expect(picking.place(page, "Favourites")).to_contain_text("0")
    kept.unlink()


def test_three_rows_are_added_without_closing(front: FrontEnd, picker: Page) -> None:
    """By key, by button and by click; a row's own file is replaced by one."""
    page = picker
    picking.close(front)
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
        picking.expect_selected(page, name)
        if add == "button":
            page.get_by_role("button", name=f"Add {name} and stay").click()
        elif add == "click":
            picking.selected(page).click(modifiers=["Shift"])
        else:
            search.press(add)
        expect(picking.selected(page)).to_contain_text("added")
    expect(page.get_by_text("3 added, last lora_0003")).to_be_visible()
    page.get_by_role("button", name="Done").click()
    expect(page.locator("dialog.loom-picker")).to_have_count(0)
    text = "() => app.graph.nodes[0].widgets.find((widget) => widget.name === 'rows').value"
    rows = ["<lora:many/styles/oil/lora_0001:1>", "<lora:many/people/lora_0002:1>", "<lora:many/lora_0003:1>"]
    assert page.evaluate(text).splitlines() == rows
    page.locator(".loom-row .loom-name").first.click()
    picking.expect_selected(page, "lora_0001")
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
    picking.place(page, "All").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    expect(picking.place(page, "people")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(picking.place(page, "many")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(picking.place(page, "people")).to_have_count(0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    expect(picking.place(page, "styles")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".loom-count")).to_have_text("1,500 found")
    expect(picking.place(page, "ink")).to_be_visible()
    page.locator(".loom-options").focus()
    page.keyboard.type("0040")
    expect(page.locator(".loom-search")).to_have_value("0040")
    picking.expect_selected(page, "lora_0040")
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.testPicked === 'many/styles/ink/lora_0040.safetensors'")
    page = picking.opened(front)
    page.keyboard.press("Escape")
    page.wait_for_function("() => app.testPicked === null")


def test_on_a_phone_one_pane_is_seen(front: FrontEnd, picker: Page) -> None:
    page = picker
    page.set_viewport_size({"width": 412, "height": 860})
    places, about = page.get_by_role("tree"), page.get_by_role("region", name="About this LoRA")
    expect(places).to_be_hidden()
    expect(about).to_be_hidden()
    first = page.locator(".loom-option").first
    front.becomes(lambda: (first.bounding_box() or {"width": 0})["width"] > 380, True)
    front.becomes(lambda: page.evaluate(picking.DRAWN_ANEW), 0)
    assert first.locator(".loom-bare").bounding_box()["width"] > 60 and page.evaluate(picking.WIDE) == 0
    page.get_by_role("button", name="Where").click()
    picking.place(page, "people").click()
    expect(places).to_be_hidden()
    expect(page.locator(".loom-chip")).to_have_text("in many/people/")
    page.get_by_role("button", name="About lora_0006").click()
    expect(about).to_contain_text("sks6")
    assert page.evaluate(picking.WIDE) == 0
    page.get_by_role("button", name="Back to the list").click()
    page.locator(".loom-option", has_text="lora_0006").click()
    page.wait_for_function("() => app.testPicked === 'many/people/lora_0006.safetensors'")


def test_all_of_it_can_be_read(front: FrontEnd, picker: Page) -> None:
    page = picking.reopened(front, current="many/people/zz_side", family="SDXL", adds=True)
    page.locator(".loom-search").fill("zz_")
    expect(page.locator(".loom-option")).to_have_count(3)
    page.keyboard.press("Shift+Enter")
    expect(page.get_by_text("1 added")).to_be_visible()
    for _ in themes(front, "dialog.loom-picker"):
        for name in ("zz_big", "zz_broken", "zz_side"):
            page.locator(".loom-option", has_text=name).hover()
            picking.expect_selected(page, name)
            expect_readable(front, "dialog.loom-picker", 20)
