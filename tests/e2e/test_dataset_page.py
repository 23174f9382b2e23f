"""LoRA Dataset in the browser, in both renderers: its folders, drops, and the page of pictures and captions."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from harness.browser import FrontEnd
from harness.server import ComfyServer
from PIL import Image
from playwright.sync_api import Locator, expect

HOSTILE = "&lt;b&gt; 'x' ${1} %2e.png"
SCRIPT = "<img src=x onerror=alert(1)> & <b>bold</b>"
CAPTIONS = {"a.png": "sks dog, grass", "b.png": "", "c.png": "sks", "d.png": "sks dog on a bench", HOSTILE: SCRIPT}
SIZES = {"a.png": (96, 64), "b.png": (64, 64), "c.png": (300, 64), "d.png": (64, 96), HOSTILE: (64, 64)}
MANY = 1500


@pytest.fixture
def folder(server: ComfyServer, vue: bool, request: pytest.FixtureRequest) -> Path:
    """A folder of its own for each test, so that none finds what another has changed."""
    path = server.base / "input" / f"e2e_page_{request.node.originalname}_{vue}"
    path.mkdir(parents=True)
    for name, text in CAPTIONS.items():
        (path / name).write_bytes(picture(SIZES[name]))
        if text:
            (path / name).with_suffix(".txt").write_text(text)
    return path


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
    inputs = {"folder": folder, "trigger": trigger, "resolution": 64, "repeats": 1, "bucket_step": 16}
    graph = {"1": {"class_type": "LoraLoom_Dataset", "inputs": inputs}}
    front.page.evaluate("() => document.querySelectorAll('dialog[open]').forEach((each) => each.close())")
    front.page.evaluate("(graph) => app.loadApiJson(graph, 'set')", graph)
    front.settle()
    front.page.evaluate("() => { const { ds } = app.canvas; ds.scale = 1; ds.offset[0] = 100; ds.offset[1] = 100 }")
    front.page.evaluate(REPEAT)
    front.drawn()


def value(front: FrontEnd) -> str:
    return front.page.evaluate("() => app.graph.nodes[0].widgets.find(({ name }) => name === 'folder').value")


def page_of(front: FrontEnd, folder: Path, trigger: str = "sks") -> Locator:
    """The page of a folder, with all of its pictures looked at."""
    node(front, folder.name, trigger)
    front.page.get_by_role("button", name="Pictures and captions").click()
    page = front.page.locator(".loom-set-page:not(.loom-set-describe)")
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


# -- the node ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_chosen_in_a_list(front: FrontEnd, folder: Path) -> None:
    node(front)
    page = front.page
    expect(page.locator(".loom-set-words")).to_have_text("Drop pictures here, or choose a folder.")
    expect(page.get_by_role("button", name="Pictures and captions")).to_be_disabled()
    page.get_by_role("button", name="Folders").click()
    page.get_by_label("Search folders").fill(folder.name)
    option = page.get_by_role("option")
    expect(option).to_have_count(1)
    expect(option).to_have_text(f"{folder.name}5 pictures")
    page.keyboard.press("Enter")
    expect(page.locator(".loom-set-words")).to_have_text("5 pictures")
    assert value(front) == folder.name and list(front.graph_to_prompt().values())[0]["inputs"]["folder"] == folder.name
    page.get_by_role("button", name="Folders").click()
    page.keyboard.press("Escape")
    assert value(front) == folder.name
    kept = front.serialized()
    assert len(kept["nodes"][0]["widgets_values"]) == 16, "the bar saves nothing"
    front.load_workflow(kept)
    expect(page.locator(".loom-set-words")).to_have_text("5 pictures")
    page.evaluate(PROMOTE)
    front.becomes(lambda: [each["inputs"]["folder"] for each in front.graph_to_prompt().values()], ["elsewhere"])
    page.evaluate("() => app.canvas.setGraph(app.graph.nodes[0].subgraph)")
    expect(page.locator(".loom-set-words")).to_have_text("The folder comes from another node.")
    page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


PROMOTE = """() => {
    app.canvas.graph.convertToSubgraph(new Set(app.graph.nodes))
    const host = app.graph.nodes[0], inner = host.subgraph.nodes[0]
    const open = inner.inputs.map(({ name }) => name)
    if (open.some((name) => name.startsWith('$$'))) throw Error('the bar is offered as an input')
    host.subgraph.addInput('folder', 'STRING')
    host.subgraph.inputs.at(-1).connect(inner.inputs.find(({ name }) => name === 'folder'), inner)
    host.widgets.find(({ name }) => name === 'folder').value = 'elsewhere'
}"""


def test_pictures_are_dropped_on_the_node(front: FrontEnd, server: ComfyServer, vue: bool) -> None:
    node(front)
    bar = front.page.locator(".loom-set")
    drop(bar, {"one.png": picture(), "one.txt": SCRIPT.encode(), "notes.pdf": b"%PDF"})
    expect(front.page.locator(".loom-set-words")).to_have_text("Added 1 of 3 files. 1 caption")
    folder = server.base / "input" / value(front)
    assert sorted(path.name for path in folder.iterdir()) == ["one.png", "one.txt"]
    assert (folder / "one.txt").read_text() == f"{SCRIPT}\n"
    x, y = front.page.evaluate(
        "() => app.canvas.convertOffsetToCanvas([app.graph.nodes[0].pos[0] + 60, app.graph.nodes[0].pos[1] + 20])"
    )
    target = front.page.locator("[data-node-id]" if vue else "#graph-canvas").first
    drop(target, {"two.png": picture((70, 70))}, [x, y] if not vue else None)
    expect(front.page.locator(".loom-set-words")).to_have_text("Added 1 of 1 files")
    assert (folder / "two.png").is_file()
    drop(bar, {"notes.pdf": b"%PDF"})
    expect(front.page.locator(".loom-set-words")).to_contain_text("Not added: there is no picture among the files")


# -- the page ----------------------------------------------------------------------------------------------------------


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


GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "GetImageSize", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    "4": {"class_type": "StringConcatenate", "inputs": {"string_a": ["3", 0], "string_b": "px wide", "delimiter": " "}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "not wanted"}},
}


def test_captions_from_a_workflow(front: FrontEnd, folder: Path, server: ComfyServer) -> None:
    page = page_of(front, folder)
    shot(page, "b.png").click()
    shot(page, "c.png").click(modifiers=["Control"])
    page.get_by_role("button", name="Caption\u2026").click()
    dialog = front.page.locator(".loom-set-describe")
    expect(dialog.get_by_role("status")).to_contain_text("has no Load Image node; it needs exactly one")
    dialog.get_by_label("Workflow", exact=True).select_option("A file\u2026")
    dialog.get_by_label("Workflow file").set_input_files(
        {"name": "w.json", "mimeType": "application/json", "buffer": json.dumps(GRAPH).encode()}
    )
    expect(dialog.get_by_label("Text from").locator("option").first).to_contain_text("Concatenate")
    dialog.get_by_label("Which pictures").select_option("All of them, adding behind captions")
    dialog.get_by_role("button", name="Caption 2 pictures").click()
    expect(dialog).to_have_count(0)
    said(page, "Saved 2 captions")
    assert [(folder / f"{name}.txt").read_text() for name in "bc"] == ["64 px wide\n", "sks, 300 px wide\n"]
    page.get_by_role("button", name="Undo").click()
    said(page, "Undone: 2 captions by a workflow")
    assert (folder / "c.txt").read_text() == "sks\n"
    closed(page)
    assert not list((server.base / "output").glob("not wanted*"))


def test_a_folder_elsewhere_is_only_shown(front: FrontEnd, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "a.txt").write_text("outside")
    node(front, str(tmp_path))
    front.page.get_by_role("button", name="Pictures and captions").click()
    page = front.page.locator(".loom-set-page:not(.loom-set-describe)")
    said(page, "Only shown, not changed here: it is outside ComfyUI's input and datasets folders.")
    expect(caption(page, "a.png")).to_have_attribute("readonly", "")
    expect(page.get_by_role("button", name="Add pictures")).to_be_disabled()
    shot(page, "a.png").click()
    expect(page.get_by_role("button", name="Take out")).to_be_disabled()
    closed(page)


def test_many_pictures_are_few_elements(front: FrontEnd, server: ComfyServer) -> None:
    folder = server.base / "input" / "e2e_page_many"
    folder.mkdir(exist_ok=True)
    data = picture((16, 16))
    for number in range(MANY):
        (folder / f"{number:04}.png").write_bytes(data)
    node(front, folder.name)
    front.page.get_by_role("button", name="Pictures and captions").click()
    page = front.page.locator(".loom-set-page:not(.loom-set-describe)")
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
