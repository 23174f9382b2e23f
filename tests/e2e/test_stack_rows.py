"""What a row of Load LoRA Stack shows and offers beside its strengths, in both renderers of the front end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from harness.browser import FrontEnd
from harness.contrast import expect_readable, themes
from harness.server import ComfyServer
from playwright.sync_api import expect

from e2e import graphs, stacked


@pytest.fixture(scope="module", autouse=True)
def _files(server: ComfyServer) -> Iterator[None]:
    """LoRAs for the demo base, one of them with a picture, and one for SDXL."""
    folder = stacked.write_loras(server.base)
    yield
    shutil.rmtree(folder)
    (server.base / "user" / "default" / "lora_loom_stacks.json").unlink(missing_ok=True)


SCENE = """
    const loader = make('UNETLoader', 100, 200), clip = make('CLIPLoader', 100, 400)
    const train = make('LoraLoom_TrainLora', 900, 500), sampler = make('KSampler', 500, 200)
    const shift = make('ModelSamplingSD3', 500, 600), text = make('CLIPTextEncode', 500, 750)
    loader.connect(0, sampler, 0)
    loader.connect(0, shift, 0)
    shift.connect(0, train, 0)
    clip.connect(0, text, 0)
"""
LOADED = {
    ("UNETLoader", "MODEL", "ModelSamplingSD3"),
    ("ModelSamplingSD3", "MODEL", "LoraLoom_TrainLora"),
}


def test_a_lora_is_put_on_the_stack_that_is_meant_or_on_a_new_one(front: FrontEnd) -> None:
    """What is trained keeps the model as it was loaded; all of it is one step to undo."""
    stacked.graph(front, SCENE)
    before = stacked.wires(front)
    assert before == {*LOADED, ("UNETLoader", "MODEL", "KSampler"), ("CLIPLoader", "CLIP", "CLIPTextEncode")}
    stacked.add(front, "stacked/ink.safetensors")
    wired = {
        *LOADED, ("UNETLoader", "MODEL", stacked.STACK), (stacked.STACK, "MODEL", "KSampler"), ("CLIPLoader", "CLIP", stacked.STACK),
        (stacked.STACK, "CLIP", "CLIPTextEncode"),
    }  # fmt: skip
    assert stacked.wires(front) == wired and stacked.rows(front) == ["<lora:stacked/ink:1>"]
    expect(front.page.locator(".loom-row")).to_have_count(1)
    assert front.page.evaluate(stacked.COVERS_NONE), "the new node"
    stacked.undo(front)
    front.becomes(lambda: stacked.wires(front), before)
    assert stacked.rows(front) == []

    first = stacked.add(front, "stacked/ink.safetensors")
    assert stacked.add(front, "stacked/oil") == first, "the only one"
    front.becomes(lambda: stacked.rows(front), ["<lora:stacked/ink:1>\n<lora:stacked/oil:1>"])
    stacked.undo(front)
    front.becomes(lambda: stacked.rows(front), ["<lora:stacked/ink:1>"])
    front.page.evaluate("""() => {
        const other = LiteGraph.createNode('LoraLoom_LoadLoraStack')
        app.graph.add(other)
        other.widgets.find(w => w.name === 'rows').value = '<lora:stacked/oil:0.5:off>'
        app.canvas.selectNode(other)
    }""")
    assert stacked.add(front, "stacked\\oil.safetensors") != first, "the one that is selected"
    assert stacked.rows(front) == ["<lora:stacked/ink:1>", "<lora:stacked/oil:0.5>"], (
        "a row that is there is switched on"
    )


# -- one workflow for what follows: a loader, a stack of rows, and what it says ----------------------------------------


@pytest.fixture
def shown(front: FrontEnd) -> FrontEnd:
    stacked.show(front, stacked.TEXT)
    return front


def test_a_row_tells_the_family_and_turns_where_the_model_is_another(shown: FrontEnd) -> None:
    page, chips = shown.page, shown.page.locator(".loom-row-chip")
    expect(chips).to_have_text(["Wan 2.1", "\u26a0 SDXL, not Wan 2.1", "Wan 2.1"])
    turned = page.get_by_role("button", name="for SDXL, but the model is Wan 2.1")
    expect(turned).to_have_count(1)
    wait_for_picture = "() => document.querySelector('.loom-row-thumb img')?.naturalWidth === 64"
    page.wait_for_function(wait_for_picture)
    expect(page.locator(".loom-row-thumb")).to_have_text(["", "A", "O"])

    page.evaluate("() => { app.graph.nodes[1].disconnectInput(0); app.graph.change() }")
    stacked.touched(shown)
    expect(turned).to_have_count(0)
    page.evaluate("""() => {
        const [loader, stack] = app.graph.nodes
        const reroute = LiteGraph.createNode('Reroute')
        app.graph.add(reroute)
        loader.connect(0, reroute, 0)
        reroute.connect(0, stack, 0)
        app.canvas.graph.convertToSubgraph(new Set([loader]))
    }""")
    stacked.touched(shown)
    expect(turned).to_have_count(1)


def test_trigger_words_are_copied_and_put_into_the_output(shown: FrontEnd, server: ComfyServer) -> None:
    page, words = shown.page, stacked.unfold(shown, 0)
    words.get_by_role("button", name="Copy ink wash;").click()
    expect(words.get_by_role("status").first).to_have_text("copied: ink wash")
    assert stacked.pasted(shown) == "ink wash" and stacked.text(shown) == stacked.TEXT.splitlines()
    words.get_by_role("button", name="Copy sks wash;").click(modifiers=["Shift"])
    shown.becomes(lambda: stacked.text(shown)[0], "<lora:stacked/ink:0.8:words=ink wash>")
    mark = words.get_by_role("switch", name="sks wash in the output triggers")
    expect(mark).to_have_attribute("aria-checked", "false")
    words.get_by_role("textbox", name="Add a trigger word").fill("one%2C, fine: <b>")
    page.keyboard.press("Enter")
    own = "<lora:stacked/ink:0.8:words=ink wash,one%252C,fine%3A %3Cb%3E>"
    shown.becomes(lambda: stacked.text(shown)[0], own)
    expect(words.locator(".loom-word-text")).to_have_text(["sks wash", "ink wash", "one%2C", "fine: <b>"])

    stacked.unfold(shown, 2)
    expect(stacked.row(shown, 2).locator(".loom-word-text")).to_have_text(stacked.HOSTILE)
    assert page.evaluate("() => window.hit") is None and page.locator(".loom-rows img:not([alt=''])").count() == 0
    inputs = next(node["inputs"] for node in shown.graph_to_prompt().values() if node["class_type"] == stacked.STACK)
    sent = {
        **graphs.base(),
        "stack": graphs.node(
            stacked.STACK, model=["unet", 0], rows=inputs["rows"].replace("armour:1:0.5", "armour:0:0")
        ),
    }
    sent["told"] = graphs.node("PreviewAny", source=["stack", 4])
    assert server.run(sent)["outputs"]["told"]["text"] == [f"ink wash, one%2C, fine: <b>, {stacked.HOSTILE}"]

    mark.focus()
    page.keyboard.press("Enter")
    words.get_by_role("switch", name="one%2C in").click()
    words.get_by_role("switch", name="fine: <b> in").click()
    shown.becomes(lambda: stacked.text(shown), stacked.TEXT.splitlines())


def test_blocks_and_part_of_sampling_go_through_text_file_and_api(shown: FrontEnd) -> None:
    page, details = shown.page, stacked.unfold(shown, 0)
    presets = details.get_by_role("combobox", name="Blocks", exact=True)
    presets.select_option("attention only")
    shown.becomes(lambda: stacked.text(shown)[0], "<lora:stacked/ink:0.8:blocks=ALL=0, *att*=1>")
    expect(stacked.row(shown, 0).locator(".loom-extras")).to_contain_text("ALL=0, *att*=1")
    presets.select_option("all blocks")
    slider = details.get_by_role("slider", name="Strength of blocks 0-1")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    shown.becomes(lambda: stacked.text(shown)[0], "<lora:stacked/ink:0.8:blocks=blocks.0-1=0.9>")
    expect(presets).to_have_value("own")
    page.keyboard.press("Control+z")
    shown.becomes(lambda: stacked.text(shown)[0], "<lora:stacked/ink:0.8:blocks=blocks.0-1=0.95>")
    details = stacked.row(shown, 0).locator(".loom-row-details")
    expect(details).to_be_visible()  # also on the node that the undo has made
    details.get_by_role("slider", name="From this share of sampling on").fill("0.2")
    details.get_by_role("slider", name="Up to this share of sampling").fill("0.1")
    wanted = "<lora:stacked/ink:0.8:blocks=blocks.0-1=0.95:start=0.2:end=0.21>"
    shown.becomes(lambda: stacked.text(shown)[0], wanted)
    expect(details.locator("output").last).to_have_text("20\u201321 %")
    field = details.get_by_role("textbox", name="Blocks as text")
    field.fill("blocks.0=0.5")
    field.press("Enter")
    wanted = wanted.replace("blocks.0-1=0.95", "blocks.0=0.5")
    shown.becomes(lambda: stacked.text(shown)[0], wanted)
    expect(details.locator(".loom-row-sliders output").first).to_have_text("mixed")

    saved = shown.serialized()
    shown.load_workflow(saved)
    expect(stacked.row(shown, 0).locator(".loom-extras")).to_contain_text("blocks.0=0.5 \u00b7 20\u201321 %")
    assert stacked.text(shown) == [wanted, *stacked.TEXT.splitlines()[1:]]
    sent = next(node["inputs"] for node in shown.graph_to_prompt().values() if node["class_type"] == stacked.STACK)
    assert sent["rows"].splitlines() == stacked.text(shown)


def test_a_row_takes_one_of_the_masks_that_are_connected(shown: FrontEnd) -> None:
    page, details = shown.page, stacked.unfold(shown, 0)
    choice = details.get_by_role("combobox", name="Part of the picture")
    expect(choice).to_be_disabled()
    expect(details).to_contain_text("connect a mask to the node")
    page.evaluate("""() => {
        const [stack] = app.graph.nodes.filter((node) => node.comfyClass === 'LoraLoom_LoadLoraStack')
        const mask = LiteGraph.createNode('SolidMask')
        app.graph.add(mask)
        mask.pos = [60, 400]
        for (const name of ['masks.mask1', 'masks.mask2']) {
            mask.connect(0, stack, stack.inputs.findIndex((input) => input.name === name))
        }
    }""")
    expect(choice).to_be_enabled()
    assert choice.locator("option").all_inner_texts() == [
        "whole picture", "inside mask1", "outside mask1", "inside mask2", "outside mask2",
    ]  # fmt: skip
    choice.select_option("outside mask2")
    wanted = "<lora:stacked/ink:0.8:mask=-2>"
    shown.becomes(lambda: stacked.text(shown)[0], wanted)
    expect(stacked.row(shown, 0).locator(".loom-extras")).to_contain_text("outside mask2")
    shown.load_workflow(shown.serialized())
    assert stacked.text(shown)[0] == wanted
    sent = next(node["inputs"] for node in shown.graph_to_prompt().values() if node["class_type"] == stacked.STACK)
    assert sent["rows"].startswith(wanted) and len(sent["masks.mask2"]) == 2
    page.evaluate("""() => {
        const [stack] = app.graph.nodes.filter((node) => node.comfyClass === 'LoraLoom_LoadLoraStack')
        stack.disconnectInput(stack.inputs.findIndex((input) => input.name === 'masks.mask2'))
    }""")
    expect(stacked.row(shown, 0).locator(".loom-extras")).to_contain_text("mask2 is not connected")


def test_what_is_folded_out_is_no_part_of_the_workflow(shown: FrontEnd) -> None:
    """Nor a step to undo: the size that is saved is that of folded rows."""
    steps = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    stacked.touched(shown)
    before, count = shown.serialized()["nodes"][1]["size"], shown.page.evaluate(steps)
    high = "() => app.graph.nodes[1].size[1]"
    folded = shown.page.evaluate(high)
    stacked.unfold(shown, 0)
    shown.becomes(lambda: shown.page.evaluate(high) > folded + 100, True)
    stacked.touched(shown)
    assert shown.serialized()["nodes"][1]["size"] == before and shown.page.evaluate(steps) == count
    stacked.row(shown, 0).locator(".loom-row-more").click()
    shown.becomes(lambda: abs(shown.page.evaluate(high) - folded) <= 1, True)


def test_the_menu_of_a_row_by_keyboard_and_by_mouse(shown: FrontEnd) -> None:
    page, ink, armour, oil = shown.page, *stacked.TEXT.splitlines()
    menu = page.get_by_role("menu")
    page.get_by_role("button", name="Choose another file for ink").focus()
    page.keyboard.press("ContextMenu")
    expect(menu.get_by_role("menuitem").first).to_be_focused()
    page.keyboard.press("d")
    page.keyboard.press("Enter")
    shown.becomes(lambda: stacked.text(shown), [ink, ink, armour, oil])
    expect(stacked.row(shown, 1).locator(".loom-name")).to_be_focused()
    page.keyboard.press("Shift+F10")
    expect(menu.get_by_role("menuitem").first).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(menu.get_by_role("menuitem", name="Remove")).to_be_focused()
    page.keyboard.press("Escape")
    expect(menu).to_have_count(0)
    expect(stacked.row(shown, 1).locator(".loom-name")).to_be_focused()
    stacked.undo(shown)
    shown.becomes(lambda: stacked.text(shown), stacked.TEXT.splitlines())

    stacked.row(shown, 1).locator(".loom-name").click(button="right")
    expect(menu.get_by_role("menuitem").first).to_have_text("Info\u2026")
    expect(page.locator(".p-contextmenu")).to_have_count(0)
    menu.get_by_role("menuitem", name="Move down").click()
    shown.becomes(lambda: stacked.text(shown), [ink, oil, armour])
    page.get_by_role("button", name="More for oil").click()
    menu.get_by_role("menuitem", name="Copy as text").click()
    shown.becomes(lambda: stacked.pasted(shown), oil)
    page.get_by_role("button", name="More for oil").click()
    menu.get_by_role("menuitem", name="Only this row on").click()
    shown.becomes(lambda: [":off" in line for line in stacked.text(shown)], [True, False, True])
    page.get_by_role("button", name="More for oil").click()
    menu.get_by_role("menuitem", name="Info").click()
    card = page.get_by_role("dialog", name="About oil")
    expect(card.locator("dd")).to_have_text(["Wan 2.1", stacked.HOSTILE, "Ada", "stacked/oil.safetensors"])
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    assert page.evaluate("() => window.hit") is None


def test_stacks_are_kept_under_names(shown: FrontEnd) -> None:
    page, dialog = shown.page, shown.page.get_by_role("dialog", name="Saved stacks")
    name = f"{stacked.HOSTILE} {page.evaluate('() => LiteGraph.vueNodesMode')}"

    def open_saved() -> None:
        page.get_by_role("button", name="Saved stacks").click()
        expect(dialog.get_by_role("textbox")).to_be_focused()

    open_saved()
    expect(dialog.get_by_role("button", name="Save the rows")).to_be_disabled()
    dialog.get_by_role("textbox").fill(name)
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("listitem")).to_have_count(1)
    expect(dialog.locator(".loom-saved-title")).to_have_text(name)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove armour").click()
    ink, armour, oil = stacked.TEXT.splitlines()
    open_saved()
    dialog.get_by_role("button", name="Append").click()
    shown.becomes(lambda: stacked.text(shown), [ink, oil, ink, armour, oil])
    stacked.undo(shown)
    shown.becomes(lambda: stacked.text(shown), [ink, oil])
    open_saved()
    dialog.get_by_role("button", name="Load").click()
    shown.becomes(lambda: stacked.text(shown), [ink, armour, oil])
    open_saved()
    drop = dialog.get_by_role("button", name="Delete")
    drop.click()
    expect(drop).to_have_text("Delete?")
    drop.click()
    expect(dialog.locator(".loom-empty")).to_be_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("() => window.hit") is None


def test_every_state_of_a_row_can_be_read_in_dark_and_light(front: FrontEnd) -> None:
    """By its contrast, and by words: no state is told by its colour alone."""
    page = front.page
    stacked.graph(front, stacked.SHOWN.replace("ROWS", repr(stacked.STATES)))
    expect(page.locator(".loom-row")).to_have_count(8)
    expect(stacked.row(front, 1).locator(".loom-row-wrong")).to_have_text("\u26a0 SDXL, not Wan 2.1")
    expect(stacked.row(front, 3).locator(".loom-extras")).to_have_text(
        "off \u00b7 IN=0.5 \u00b7 20\u2013100 % \u00b7 1 word"
    )
    expect(stacked.row(front, 4).locator(".loom-extras")).to_have_text("not found")
    expect(stacked.row(front, 6)).to_contain_text("abc is not a strength")
    stacked.unfold(front, 0)
    for _ in themes(front, ".loom-rows"):
        expect_readable(front, ".loom-rows", 50)


def test_from_afar_a_row_is_one_line_that_can_be_read_and_comes_back_with_the_focus(front: FrontEnd) -> None:
    """What is opened from a row gives it the focus back."""
    page = front.page
    stacked.graph(
        front, stacked.SHOWN.replace("ROWS", repr("<lora:stacked/ink:0.8>\n<lora:stacked/oil:1:off>\n<lora:gone:1>"))
    )
    expect(page.locator(".loom-row")).to_have_count(3)
    far, name = page.locator(".loom-rows-far"), stacked.row(front, 0).locator(".loom-name")
    expect(far).to_be_hidden()
    page.evaluate("() => { app.canvas.ds.scale = 0.5; app.canvas.setDirty(true, true) }")
    try:
        expect(far.locator("span")).to_have_text(["0.8 ink", "off oil", "\u26a0 gone"])
        before = page.evaluate("() => app.graph.nodes.map((node) => [...node.size])")
        front.becomes(lambda: [name.evaluate(SEEN), far.evaluate(SEEN)], [False, True])
        far.focus()
        page.keyboard.press("Tab")
        assert name.evaluate(SEEN) and page.evaluate("() => document.activeElement.className") == "loom-switch"
        name.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".loom-picker")).to_be_visible()
        page.keyboard.press("Escape")
        expect(name).to_be_focused()
        page.locator("#graph-canvas").focus()
        front.becomes(lambda: [name.evaluate(SEEN), far.evaluate(SEEN)], [False, True])
        assert page.evaluate("() => app.graph.nodes.map((node) => [...node.size])") == before
    finally:
        page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.setDirty(true, true) }")
    expect(far).to_be_hidden()
    assert name.evaluate(SEEN)


SEEN = "(element) => element.checkVisibility()"
