"""The page of pictures and captions in the browser, in both renderers."""

from __future__ import annotations

from pathlib import Path

from harness.browser import FrontEnd
from harness.server import ComfyServer
from playwright.sync_api import expect

from .pages import CAPTIONS, HOSTILE, SCRIPT, caption, card, closed, drop, opened, page_of, picture, said, shot

MANY = 600


def test_captions_are_edited_saved_and_undone(front: FrontEnd, folder: Path) -> None:
    page = page_of(front, folder)
    keys = front.page.keyboard
    expect(shot(page, HOSTILE)).to_be_focused()
    expect(caption(page, HOSTILE)).to_have_value(SCRIPT)
    keys.press("ArrowRight")
    keys.press("Enter")
    expect(caption(page, "a.png")).to_be_focused()
    keys.press("Control+a")
    keys.type("sks, \u00e9t\u00e9 ")
    keys.press("Control+Enter")
    expect(caption(page, "b.png")).to_be_focused()
    said(page, "Saved 1 caption")
    assert (folder / "a.txt").read_text("utf-8") == "sks, \u00e9t\u00e9\n"
    keys.type(SCRIPT)
    keys.press("Control+Enter")
    expect(page.locator(".loom-set-page-head .loom-set-dim")).to_contain_text("all with captions")
    assert (folder / "b.txt").read_text() == f"{SCRIPT}\n"
    expect(caption(page, "c.png")).to_be_focused()
    keys.press("Control+z")
    said(page, "Undone: the caption of b.png")
    expect(caption(page, "b.png")).to_have_value("")
    keys.press("Control+z")
    said(page, "Undone: the caption of a.png")
    assert ((folder / "a.txt").read_text(), (folder / "b.txt").read_text()) == ("sks dog, grass\n", "")
    keys.press("Control+Shift+z")
    said(page, "Done again: the caption of a.png")
    assert (folder / "a.txt").read_text("utf-8") == "sks, \u00e9t\u00e9\n"
    keys.type("not this")
    keys.press("Escape")
    expect(caption(page, "c.png")).to_have_value("sks")
    keys.press("Escape")
    expect(page).to_have_count(0)
    front.page.get_by_role("button", name="Pictures and captions").click()
    expect(caption(page, "a.png")).to_have_value("sks, \u00e9t\u00e9")
    closed(page)


def test_a_tag_over_a_selection_is_one_step(front: FrontEnd, folder: Path) -> None:
    page = page_of(front, folder)
    shot(page, "a.png").click()
    shot(page, "d.png").click(modifiers=["Shift"])
    expect(page.locator(".loom-set-counted")).to_have_text("4 selected")
    page.get_by_label("Tag or words").fill("outdoors")
    page.get_by_role("button", name="Change 4 captions").click()
    said(page, "Saved 4 captions")
    texts = [(folder / f"{name}.txt").read_text().strip() for name in "abcd"]
    assert texts == ["sks dog, grass, outdoors", "outdoors", "sks, outdoors", "sks dog on a bench, outdoors"]
    page.get_by_label("What to do with the captions").select_option("Replace")
    page.get_by_label("Tag or words").fill("DOG")
    page.get_by_label("Replace with").fill("cat")
    page.get_by_role("button", name="Change 2 captions").click()
    said(page, "Saved 2 captions")
    assert (folder / "d.txt").read_text() == "sks cat on a bench, outdoors\n"
    page.get_by_role("button", name="Undo").click()
    said(page, "Undone: replace: DOG")
    page.get_by_role("button", name="Undo").click()
    said(page, "Undone: add at the end: outdoors")
    assert [(folder / f"{name}.txt").read_text().strip() for name in "abcd"] == [
        CAPTIONS[f"{name}.png"] for name in "abcd"
    ]
    page.get_by_role("button", name="Select none").click()
    front.page.keyboard.press("Control+a")
    expect(page.locator(".loom-set-counted")).to_have_text("5 selected")
    front.page.keyboard.press("Escape")
    expect(page.locator(".loom-set-bulk")).to_be_hidden()
    closed(page)


def test_marks_filters_crops_and_hostile_names(front: FrontEnd, folder: Path) -> None:
    page = page_of(front, folder)
    expect(page.locator(".loom-set-file").first).to_have_text(HOSTILE)
    assert page.locator(".loom-set-cards b, .loom-set-cards img[src=x]").count() == 0
    chips = {"no caption": ["b.png"], "trigger alone": ["c.png"], "cropped": ["c.png"]}
    for mark, names in chips.items():
        chip = page.locator(f".loom-set-chip[data-mark='{mark}']")
        chip.click()
        expect(page.locator(".loom-set-file")).to_have_text(names)
        expect(chip).to_have_attribute("aria-pressed", "true")
        chip.click()
    expect(page.locator(".loom-set-mark", has_text="no caption")).to_have_attribute(
        "title", "b.png has no caption, so everything in it is learned as 'sks'."
    )
    page.get_by_label("Search captions and names").fill("bench")
    expect(page.locator(".loom-set-file")).to_have_text(["d.png"])
    page.get_by_label("Search captions and names").fill("")
    page.get_by_label("Crop", exact=True).check()
    frame = card(page, "c.png").locator(".loom-set-frame")
    expect(frame).to_have_text("80 \u00d7 48")
    assert 30 < float(frame.evaluate("(each) => parseFloat(each.style.left)")) < 35
    closed(page)


def test_a_caption_that_changed_meanwhile_is_asked_about(front: FrontEnd, folder: Path) -> None:
    page = page_of(front, folder)
    for name, button, wanted in (("a.png", "Keep mine", "mine\n"), ("d.png", "Take that", "by another")):
        (folder / name).with_suffix(".txt").write_text("by another")
        caption(page, name).fill("mine")
        caption(page, name).blur()
        said(page, "1 caption changed on disk meanwhile")
        expect(card(page, name).locator(".loom-set-why")).to_have_text(
            "Changed on disk meanwhile: \u201cby another\u201d"
        )
        expect(caption(page, name)).to_have_value("mine")
        assert (folder / name).with_suffix(".txt").read_text() == "by another"
        card(page, name).get_by_role("button", name=button).click()
        expect(card(page, name).locator(".loom-set-question")).to_be_hidden()
        expect(caption(page, name)).to_have_value(wanted.strip())
        front.becomes((folder / name).with_suffix(".txt").read_text, wanted)
    closed(page)


def test_pictures_are_added_taken_out_and_put_back(front: FrontEnd, folder: Path) -> None:
    page = page_of(front, folder)
    drop(page.locator(".loom-set-cards"), {"new.png": picture(), "new.txt": b"a new one", "a.png": picture((80, 80))})
    said(page, "Added 2 of 3 files. 1 caption")
    expect(caption(page, "new.png")).to_have_value("a new one")
    assert (folder / "a (1).png").is_file()
    shot(page, "a.png").click()
    front.page.keyboard.press("Delete")
    said(page, "1 picture moved to the folder _removed")
    expect(shot(page, "a.png")).to_have_count(0)
    assert (folder / "_removed" / "a.txt").read_text() == "sks dog, grass" and not (folder / "a.png").exists()
    front.page.keyboard.press("Delete")
    front.page.keyboard.press("Control+z")
    said(page, "Undone: take out 1 picture")
    expect(caption(page, "a.png")).to_have_value("sks dog, grass")
    assert (folder / "a.txt").is_file() and not list((folder / "_removed").iterdir())
    closed(page)


def test_a_folder_elsewhere_is_only_shown(front: FrontEnd, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "a.txt").write_text("outside")
    page = opened(front, str(tmp_path))
    said(page, "Only shown, not changed here: it is outside ComfyUI's input and datasets folders.")
    expect(caption(page, "a.png")).to_have_attribute("readonly", "")
    expect(page.get_by_role("button", name="Add pictures")).to_be_disabled()
    shot(page, "a.png").click()
    expect(page.get_by_role("button", name="Take out")).to_be_disabled()
    closed(page)


def many(folder: Path) -> Path:
    if not folder.exists():
        folder.mkdir()
        data = picture((16, 16))
        for number in range(MANY):
            (folder / f"{number:04}.png").write_bytes(data)
    return folder


def test_many_pictures_are_few_elements(front: FrontEnd, server: ComfyServer) -> None:
    page = opened(front, many(server.base / "input" / "e2e_page_many").name)
    expect(shot(page, "0000.png")).to_be_focused()
    front.page.keyboard.press("End")
    expect(shot(page, f"{MANY - 1:04}.png")).to_be_focused()
    expect(shot(page, f"{MANY - 1:04}.png")).to_be_in_viewport()
    assert page.locator(".loom-set-card").count() < 80
    closed(page)


def test_the_page_is_whole_on_a_phone(front: FrontEnd, folder: Path) -> None:
    page = page_of(front, folder)
    front.page.set_viewport_size({"width": 412, "height": 850})
    front.page.keyboard.press("Control+a")
    for name in ("Undo", "Add pictures", "Take out", "Select none", "Close"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    assert page.evaluate("(each) => each.scrollWidth <= each.clientWidth && each.clientWidth <= innerWidth")
    closed(page)
    front.page.set_viewport_size({"width": 1600, "height": 900})
