"""What a row of Load LoRA Stack shows and offers beside its strengths, in both renderers of the front end."""

from __future__ import annotations

import io
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.browser import FrontEnd
from harness.server import ComfyServer
from PIL import Image
from playwright.sync_api import Browser, Locator, expect
from safetensors.torch import load_file, save_file

from e2e import graphs

EMPTY = {"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4, "last_node_id": 0,
         "last_link_id": 0}  # fmt: skip
STACK = "LoraLoom_LoadLoraStack"
LAYER = "blocks.0.self_attn.q"
SDXL = "input_blocks_7_1_transformer_blocks_9_attn2_to_v"
HOSTILE = "<img src=x onerror=window.hit=1>"
ROWS = f"app.graph.nodes.filter(n => n.comfyClass === '{STACK}').map(n => n.widgets.find(w => w.name === 'rows').value)"


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> Iterator[None]:
    """LoRAs for the demo base, one of them with a picture, and one for SDXL."""
    demo = Path(__file__).parents[1] / "demo" / "models" / "diffusion_models" / "loom_demo.safetensors"
    width = load_file(demo)[f"{LAYER}.weight"].shape[0]
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    cover = "data:image/png;base64," + b64encode(picture.getvalue()).decode()
    folder = server.base / "models" / "loras" / "stacked"
    folder.mkdir(parents=True)
    write(folder / "ink.safetensors", f"diffusion_model.{LAYER}", width, "sks wash, ink wash", cover)
    write(folder / "oil.safetensors", f"diffusion_model.{LAYER}", width, HOSTILE)
    write(folder / "armour.safetensors", f"lora_unet_{SDXL}", 2048, "armour")
    yield
    shutil.rmtree(folder)
    (server.base / "user" / "default" / "lora_loom_stacks.json").unlink(missing_ok=True)


def write(path: Path, layer: str, width: int, words: str, cover: str = "") -> None:
    tensors = {
        f"{layer}.lora_down.weight": torch.randn(4, width, generator=torch.Generator().manual_seed(0)),
        f"{layer}.lora_up.weight": torch.randn(width, 4, generator=torch.Generator().manual_seed(1)),
    }
    about = {"modelspec.trigger_phrase": words, "modelspec.author": "Ada", "modelspec.thumbnail": cover}
    save_file(tensors, path, {key: value for key, value in about.items() if value})


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def front(request: pytest.FixtureRequest, browser: Browser, server: ComfyServer, files: None) -> Iterator[FrontEnd]:
    with FrontEnd(browser, server, vue=request.param) as opened:
        opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield opened
        assert opened.errors == [] and opened.external == []


def graph(front: FrontEnd, script: str) -> None:
    """A workflow of its own, made by a script that has `make(type, x, y)`."""
    front.load_workflow(EMPTY)
    front.page.evaluate(
        """async (script) => {
            const make = (type, x, y) => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                node.pos = [x, y]
                return node
            }
            new Function('make', script)(make)
            app.canvas.ds.scale = 1; app.canvas.ds.offset[0] = 0; app.canvas.ds.offset[1] = 0
            app.canvas.setDirty(true, true)
            app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()
        }""",
        script,
    )


def add(front: FrontEnd, name: str) -> int:
    return front.page.evaluate(
        "(name) => import('/extensions/lora-loom/js/stack/add.js').then(({addToStack}) => addToStack(name).id)", name
    )


def rows(front: FrontEnd) -> list[str]:
    return front.page.evaluate(f"() => {ROWS}")


def wires(front: FrontEnd) -> set[tuple[Any, ...]]:
    found = front.page.evaluate("""() => [...app.graph.links.values()].map((link) => [
        app.graph.getNodeById(link.origin_id).type, link.type, app.graph.getNodeById(link.target_id).type])""")
    return {tuple(each) for each in found}


def undo(front: FrontEnd) -> None:
    front.page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")


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
    graph(front, SCENE)
    before = wires(front)
    assert before == {*LOADED, ("UNETLoader", "MODEL", "KSampler"), ("CLIPLoader", "CLIP", "CLIPTextEncode")}
    add(front, "stacked/ink.safetensors")
    wired = {
        *LOADED, ("UNETLoader", "MODEL", STACK), (STACK, "MODEL", "KSampler"), ("CLIPLoader", "CLIP", STACK),
        (STACK, "CLIP", "CLIPTextEncode"),
    }  # fmt: skip
    assert wires(front) == wired and rows(front) == ["<lora:stacked/ink:1>"]
    expect(front.page.locator(".loom-row")).to_have_count(1)
    clear = """() => app.graph.nodes.every((a) => app.graph.nodes.every((b) => a === b
        || a.pos[0] + a.size[0] <= b.pos[0] || b.pos[0] + b.size[0] <= a.pos[0]
        || a.pos[1] + a.size[1] <= b.pos[1] || b.pos[1] + b.size[1] <= a.pos[1]
        || ![a, b].some((each) => each.type === 'LoraLoom_LoadLoraStack')))"""
    assert front.page.evaluate(clear), "the new node covers none"
    undo(front)
    front.becomes(lambda: wires(front), before)
    assert rows(front) == []

    first = add(front, "stacked/ink.safetensors")
    assert add(front, "stacked/oil") == first, "the only one"
    front.becomes(lambda: rows(front), ["<lora:stacked/ink:1>\n<lora:stacked/oil:1>"])
    undo(front)
    front.becomes(lambda: rows(front), ["<lora:stacked/ink:1>"])
    front.page.evaluate("""() => {
        const other = LiteGraph.createNode('LoraLoom_LoadLoraStack')
        app.graph.add(other)
        other.widgets.find(w => w.name === 'rows').value = '<lora:stacked/oil:0.5:off>'
        app.canvas.selectNode(other)
    }""")
    assert add(front, "stacked\\oil.safetensors") != first, "the one that is selected"
    assert rows(front) == ["<lora:stacked/ink:1>", "<lora:stacked/oil:0.5>"], "a row that is there is switched on"


# -- one workflow for what follows: a loader, a stack of rows, and what it says ----------------------------------------

TEXT = "<lora:stacked/ink:0.8>\n<lora:stacked/armour:1:0.5>\n<lora:stacked/oil:0.5>"
SHOWN = f"""
    const loader = make('UNETLoader', 60, 150), stack = make('{STACK}', 460, 120)
    loader.widgets[0].value = 'loom_demo.safetensors'
    loader.connect(0, stack, 0)
    stack.widgets.find((widget) => widget.name === 'rows').value = ROWS
"""


@pytest.fixture
def shown(front: FrontEnd) -> FrontEnd:
    show(front, TEXT)
    return front


def show(front: FrontEnd, text: str) -> None:
    graph(front, SHOWN.replace("ROWS", repr(text)))
    expect(front.page.locator(".loom-row")).to_have_count(text.count("<lora:"))
    front.still()


def text(front: FrontEnd) -> list[str]:
    return rows(front)[0].splitlines()


def row(front: FrontEnd, number: int) -> Locator:
    return front.page.locator(".loom-row").nth(number)


def unfold(front: FrontEnd, number: int) -> Locator:
    row(front, number).locator(".loom-row-more").click()
    details = row(front, number).locator(".loom-row-details")
    expect(details).to_be_visible()
    front.still()
    return details


def touched(front: FrontEnd) -> None:
    """The end of a press anywhere, after which the front end, and the rows, look at what has changed."""
    front.page.evaluate("""() => {
        for (const kind of ['pointerup', 'mouseup']) document.body.dispatchEvent(new Event(kind, {bubbles: true}))
    }""")


def pasted(front: FrontEnd) -> str:
    return front.page.evaluate("() => navigator.clipboard.readText()")


def test_a_row_tells_the_family_and_turns_where_the_model_is_another(shown: FrontEnd) -> None:
    page, chips = shown.page, shown.page.locator(".loom-row-chip")
    expect(chips).to_have_text(["Wan 2.1", "\u26a0 SDXL, not Wan 2.1", "Wan 2.1"])
    turned = page.get_by_role("button", name="for SDXL, but the model is Wan 2.1")
    expect(turned).to_have_count(1)
    wait_for_picture = "() => document.querySelector('.loom-row-thumb img')?.naturalWidth === 64"
    page.wait_for_function(wait_for_picture)
    expect(page.locator(".loom-row-thumb")).to_have_text(["", "A", "O"])

    page.evaluate("() => { app.graph.nodes[1].disconnectInput(0); app.graph.change() }")
    touched(shown)
    expect(turned).to_have_count(0)
    page.evaluate("""() => {
        const [loader, stack] = app.graph.nodes
        const reroute = LiteGraph.createNode('Reroute')
        app.graph.add(reroute)
        loader.connect(0, reroute, 0)
        reroute.connect(0, stack, 0)
        app.canvas.graph.convertToSubgraph(new Set([loader]))
    }""")
    touched(shown)
    expect(turned).to_have_count(1)


def test_trigger_words_are_copied_and_put_into_the_output(shown: FrontEnd, server: ComfyServer) -> None:
    page, words = shown.page, unfold(shown, 0)
    words.get_by_role("button", name="Copy ink wash;").click()
    expect(words.get_by_role("status").first).to_have_text("copied: ink wash")
    assert pasted(shown) == "ink wash" and text(shown) == TEXT.splitlines()
    words.get_by_role("button", name="Copy sks wash;").click(modifiers=["Shift"])
    shown.becomes(lambda: text(shown)[0], "<lora:stacked/ink:0.8:words=ink wash>")
    mark = words.get_by_role("switch", name="sks wash in the output triggers")
    expect(mark).to_have_attribute("aria-checked", "false")
    words.get_by_role("textbox", name="Add a trigger word").fill("one%2C, fine: <b>")
    page.keyboard.press("Enter")
    own = "<lora:stacked/ink:0.8:words=ink wash,one%252C,fine%3A %3Cb%3E>"
    shown.becomes(lambda: text(shown)[0], own)
    expect(words.locator(".loom-word-text")).to_have_text(["sks wash", "ink wash", "one%2C", "fine: <b>"])

    unfold(shown, 2)
    expect(row(shown, 2).locator(".loom-word-text")).to_have_text(HOSTILE)
    assert page.evaluate("() => window.hit") is None and page.locator(".loom-rows img:not([alt=''])").count() == 0
    inputs = next(node["inputs"] for node in shown.graph_to_prompt().values() if node["class_type"] == STACK)
    sent = {
        **graphs.base(),
        "stack": graphs.node(STACK, model=["unet", 0], rows=inputs["rows"].replace("armour:1:0.5", "armour:0:0")),
    }
    sent["told"] = graphs.node("PreviewAny", source=["stack", 4])
    assert server.run(sent)["outputs"]["told"]["text"] == [f"ink wash, one%2C, fine: <b>, {HOSTILE}"]

    mark.focus()
    page.keyboard.press("Enter")
    words.get_by_role("switch", name="one%2C in").click()
    words.get_by_role("switch", name="fine: <b> in").click()
    shown.becomes(lambda: text(shown), TEXT.splitlines())


def test_blocks_and_part_of_sampling_go_through_text_file_and_api(shown: FrontEnd) -> None:
    page, details = shown.page, unfold(shown, 0)
    presets = details.get_by_role("combobox", name="Blocks", exact=True)
    presets.select_option("attention only")
    shown.becomes(lambda: text(shown)[0], "<lora:stacked/ink:0.8:blocks=ALL=0, *att*=1>")
    expect(row(shown, 0).locator(".loom-extras")).to_contain_text("ALL=0, *att*=1")
    presets.select_option("all blocks")
    slider = details.get_by_role("slider", name="Strength of blocks 0-1")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    shown.becomes(lambda: text(shown)[0], "<lora:stacked/ink:0.8:blocks=blocks.0-1=0.9>")
    expect(presets).to_have_value("own")
    page.keyboard.press("Control+z")
    shown.becomes(lambda: text(shown)[0], "<lora:stacked/ink:0.8:blocks=blocks.0-1=0.95>")
    details = row(shown, 0).locator(".loom-row-details")
    expect(details).to_be_visible()  # also on the node that the undo has made
    details.get_by_role("slider", name="From this share of sampling on").fill("0.2")
    details.get_by_role("slider", name="Up to this share of sampling").fill("0.1")
    wanted = "<lora:stacked/ink:0.8:blocks=blocks.0-1=0.95:start=0.2:end=0.21>"
    shown.becomes(lambda: text(shown)[0], wanted)
    expect(details.locator("output").last).to_have_text("20\u201321 %")
    field = details.get_by_role("textbox", name="Blocks as text")
    field.fill("blocks.0=0.5")
    field.press("Enter")
    wanted = wanted.replace("blocks.0-1=0.95", "blocks.0=0.5")
    shown.becomes(lambda: text(shown)[0], wanted)
    expect(details.locator(".loom-row-sliders output").first).to_have_text("mixed")

    saved = shown.serialized()
    shown.load_workflow(saved)
    expect(row(shown, 0).locator(".loom-extras")).to_contain_text("blocks.0=0.5 \u00b7 20\u201321 %")
    assert text(shown) == [wanted, *TEXT.splitlines()[1:]]
    sent = next(node["inputs"] for node in shown.graph_to_prompt().values() if node["class_type"] == STACK)
    assert sent["rows"].splitlines() == text(shown)


def test_what_is_folded_out_is_no_part_of_the_workflow(shown: FrontEnd) -> None:
    """Nor a step to undo: the size that is saved is that of folded rows."""
    steps = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    touched(shown)
    before, count = shown.serialized()["nodes"][1]["size"], shown.page.evaluate(steps)
    high = "() => app.graph.nodes[1].size[1]"
    folded = shown.page.evaluate(high)
    unfold(shown, 0)
    shown.becomes(lambda: shown.page.evaluate(high) > folded + 100, True)
    touched(shown)
    assert shown.serialized()["nodes"][1]["size"] == before and shown.page.evaluate(steps) == count
    row(shown, 0).locator(".loom-row-more").click()
    shown.becomes(lambda: abs(shown.page.evaluate(high) - folded) <= 1, True)


def test_the_menu_of_a_row_by_keyboard_and_by_mouse(shown: FrontEnd) -> None:
    page, ink, armour, oil = shown.page, *TEXT.splitlines()
    menu = page.get_by_role("menu")
    page.get_by_role("button", name="Choose another file for ink").focus()
    page.keyboard.press("ContextMenu")
    expect(menu.get_by_role("menuitem").first).to_be_focused()
    page.keyboard.press("d")
    page.keyboard.press("Enter")
    shown.becomes(lambda: text(shown), [ink, ink, armour, oil])
    expect(row(shown, 1).locator(".loom-name")).to_be_focused()
    page.keyboard.press("Shift+F10")
    page.keyboard.press("ArrowUp")
    expect(menu.get_by_role("menuitem", name="Remove")).to_be_focused()
    page.keyboard.press("Escape")
    expect(menu).to_have_count(0)
    expect(row(shown, 1).locator(".loom-name")).to_be_focused()
    undo(shown)
    shown.becomes(lambda: text(shown), TEXT.splitlines())

    row(shown, 1).locator(".loom-name").click(button="right")
    expect(menu.get_by_role("menuitem").first).to_have_text("Info\u2026")
    expect(page.locator(".p-contextmenu")).to_have_count(0)
    menu.get_by_role("menuitem", name="Move down").click()
    shown.becomes(lambda: text(shown), [ink, oil, armour])
    page.get_by_role("button", name="More for oil").click()
    menu.get_by_role("menuitem", name="Copy as text").click()
    shown.becomes(lambda: pasted(shown), oil)
    page.get_by_role("button", name="More for oil").click()
    menu.get_by_role("menuitem", name="Only this row on").click()
    shown.becomes(lambda: [":off" in line for line in text(shown)], [True, False, True])
    page.get_by_role("button", name="More for oil").click()
    menu.get_by_role("menuitem", name="Info").click()
    card = page.get_by_role("dialog", name="About oil")
    expect(card.locator("dd")).to_have_text(["Wan 2.1", HOSTILE, "Ada", "stacked/oil.safetensors"])
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    assert page.evaluate("() => window.hit") is None


def test_stacks_are_kept_under_names(shown: FrontEnd) -> None:
    page, dialog = shown.page, shown.page.get_by_role("dialog", name="Saved stacks")
    name = f"{HOSTILE} {page.evaluate('() => LiteGraph.vueNodesMode')}"

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
    ink, armour, oil = TEXT.splitlines()
    open_saved()
    dialog.get_by_role("button", name="Append").click()
    shown.becomes(lambda: text(shown), [ink, oil, ink, armour, oil])
    undo(shown)
    shown.becomes(lambda: text(shown), [ink, oil])
    open_saved()
    dialog.get_by_role("button", name="Load").click()
    shown.becomes(lambda: text(shown), [ink, armour, oil])
    open_saved()
    drop = dialog.get_by_role("button", name="Delete")
    drop.click()
    expect(drop).to_have_text("Delete?")
    drop.click()
    expect(dialog.locator(".loom-empty")).to_be_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("() => window.hit") is None


STATES = (
    f"{TEXT}\n<lora:stacked/oil:0.6:blocks=IN=0.5:start=0.2:off>\n<lora:gone:0>\n# people\n<lora:x:abc>\n"
    "<lora:stacked/ink:0:1:words=>"
)
# The least contrast of each text on the list, as its ancestors' grounds lie over each other; the canvas paints the first.
CONTRAST = """() => {
    const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
    const rgba = (colour) => {
        pen.clearRect(0, 0, 1, 1)
        pen.fillStyle = colour
        pen.fillRect(0, 0, 1, 1)
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data
        return [r, g, b, a / 255]
    }
    const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)]
    const light = (colour) => colour.map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0)
    const ratio = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b)
        return (high + 0.05) / (low + 0.05)
    }
    const found = []
    const look = (element, style, words) => {
        const up = []
        for (let each = element; each; each = each.parentElement) up.unshift(each)
        let ground = rgba(LiteGraph.NODE_DEFAULT_BGCOLOR), seen = 1
        for (const each of up.slice(up.findIndex((each) => each.matches('.dom-widget, .lg-node')))) {
            seen *= Number(getComputedStyle(each).opacity)
            ground = over(rgba(getComputedStyle(each).backgroundColor), ground)
        }
        const [r, g, b, a] = rgba(style.color)
        found.push([ratio(over([r, g, b, a * seen], ground), ground), words, element.className])
    }
    for (const each of document.querySelectorAll('.loom-rows *')) {
        const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())
        if (!each.checkVisibility() || each.matches(':disabled, option')) continue
        if (own || each.matches('input:not([type=range])')) look(each, getComputedStyle(each), each.value || each.textContent)
        if (each.placeholder) look(each, getComputedStyle(each, '::placeholder'), each.placeholder)
    }
    return found
}"""


IS_DARK = """(dark) => {
    const [red] = getComputedStyle(document.querySelector('.loom-rows')).color.match(/\\d+/)
    return (red > 127) === dark
}"""


def test_every_state_of_a_row_can_be_read_in_dark_and_light(front: FrontEnd) -> None:
    """By its contrast, and by words: no state is told by its colour alone."""
    page = front.page
    graph(front, SHOWN.replace("ROWS", repr(STATES)))
    expect(page.locator(".loom-row")).to_have_count(8)
    expect(row(front, 1).locator(".loom-row-wrong")).to_have_text("\u26a0 SDXL, not Wan 2.1")
    expect(row(front, 3).locator(".loom-extras")).to_have_text("off \u00b7 IN=0.5 \u00b7 20\u2013100 % \u00b7 1 word")
    expect(row(front, 4).locator(".loom-extras")).to_have_text("not found")
    expect(row(front, 6)).to_contain_text("abc is not a strength")
    unfold(front, 0)
    try:
        for palette in ("dark", "light"):
            page.evaluate("(palette) => app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
            page.wait_for_function(IS_DARK, arg=palette == "dark")
            front.becomes(lambda: [each for each in page.evaluate(CONTRAST) if each[0] < 4.5], [])
            assert len(page.evaluate(CONTRAST)) > 50
    finally:
        page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def test_from_afar_a_row_is_one_line_that_can_be_read_and_comes_back_with_the_focus(front: FrontEnd) -> None:
    """What is opened from a row gives it the focus back."""
    page = front.page
    graph(front, SHOWN.replace("ROWS", repr("<lora:stacked/ink:0.8>\n<lora:stacked/oil:1:off>\n<lora:gone:1>")))
    expect(page.locator(".loom-row")).to_have_count(3)
    far, name = page.locator(".loom-rows-far"), row(front, 0).locator(".loom-name")
    expect(far).to_be_hidden()
    page.evaluate("() => { app.canvas.ds.scale = 0.5; app.canvas.setDirty(true, true) }")
    try:
        expect(far.locator("span")).to_have_text(["0.8 ink", "off oil", "\u26a0 gone"])
        before = page.evaluate("() => app.graph.nodes.map((node) => [...node.size])")
        assert not name.evaluate(SEEN) and far.evaluate(SEEN)
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
