"""What the page says in another language than English, room by room: no English is left but names, units and keys."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from demo import shapes
from harness.browser import FrontEnd
from harness.locales import table
from harness.server import ComfyServer
from playwright.sync_api import Browser, Page, expect

from e2e import graphs, stacked

FOLDER = "e2e_words"
RUN = "\u8bad\u7ec3 1"
SAMPLER = {"width": 64, "height": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "seed": 5}
PARTS = {"lora_stack": ["stack", 2], "strengths": ""}
STAYS = re.compile(  # names, what the recipe of a preset is from, units, keys, and what rows are written with
    "LoRA Loom's demo base|Wan 2.1|SDXL|stacked|armour|gone|ink wash|sks wash|ink|oil|Ada|safetensors|heart|"
    r"\w+ timesteps at shift.*|output/lora_loom/\S+|\S+self_attn\S+|diffusion_model|<[^>]*>|blocks?\S*|\b(?:LoRA|loras|ComfyUI|alpha|auto|fp16|"
    r"GB|MB|kB|KB|RAM|px|REST|ALL|IN|MID|Ctrl\+C|Ctrl\+Z|Shift|Alt|Del|Enter|Esc|AB)\b"
)
TEXTS = """() => {
    const english = '.loom-set, .loom-report, .loom-measure-words, .loom-runs-facts-report, .loom-runs-facts-settings, .loom-run-differs'
    const found = new Set()
    for (const each of document.querySelectorAll('.loom, .loom *')) {
        if (each.closest(english)) continue
        for (const node of each.childNodes) if (node.nodeType === 3) found.add(node.data)
        for (const name of ['title', 'aria-label', 'aria-valuetext', 'placeholder', 'alt']) found.add(each.getAttribute(name) ?? '')
    }
    return [...found]
}"""


@pytest.fixture(scope="module")
def words() -> dict[str, str]:
    return table("zh")["words"]


@pytest.fixture(scope="module")
def page(browser: Browser, server: ComfyServer) -> Iterator[Page]:
    """In Chinese, with a run to be made, a stack, and what measures it; the only LoRA files are those of the stack."""
    root = server.base / "models" / "loras"
    aside = root.rename(root.with_name("loras_aside"))
    stacked.write_loras(server.base)
    shapes.write_dataset(server.base / "input" / FOLDER, "heart", 4, 64, 0)
    with FrontEnd(browser, server, language="zh") as front:
        front.page.evaluate("(graph) => app.loadApiJson(graph, 'words')", graph())
        front.settle()
        yield front.page
        assert front.errors == [] and front.external == []
    shutil.rmtree(root)
    aside.rename(root)


def graph() -> graphs.Graph:
    auto = {"rank": 0, "alpha": 0.0, "learning_rate": 0.0, "targets": "auto"}
    made = graphs.training(FOLDER, RUN, steps=2, **auto)
    del made["save"]
    made["shown"] = graphs.node("LoraLoom_Previews", prompts="heart", negative="", every=1, strength=1.0, **SAMPLER)
    made["train"]["inputs"]["previews"] = ["shown", 0]
    rows = "<lora:stacked/ink:1>\n<lora:stacked/oil:1:blocks=ALL=0.5:start=0.2>\n<lora:stacked/armour:1:off>\n<lora:gone:1>"
    made["stack"] = graphs.node(stacked.STACK, model=["unet", 0], rows=rows)
    pair = graphs.node(stacked.STACK, model=["unet", 0], rows="<lora:stacked/ink:1>\n<lora:stacked/oil:1>")
    made |= {"pair": pair, "found": graphs.node("LoraLoom_Interference", model=["unet", 0], lora_stack=["pair", 2])}
    made["merge"] = graphs.node("LoraLoom_MergeLora", model=["unet", 0], rank=1, strengths="", lora_stack=["pair", 2])
    return made | {"text": graphs.node("PreviewAny", source=["merge", 2])}


def english(page: Page) -> list[str]:
    """What is left of it on the page."""
    return sorted(text for text in page.evaluate(TEXTS) if re.search("[A-Za-z]{2,}", STAYS.sub("", text)))


def test_rows_of_a_stack(page: Page, words: dict[str, str]) -> None:
    row = page.locator(".loom-row").first
    expect(row.locator(".loom-row-chip")).to_have_count(1)
    for more in page.locator(".loom-row-more").all()[:2]:
        more.evaluate("(button) => button.click()")
    expect(page.locator(".loom-row-details")).to_have_count(2)
    assert english(page) == []
    for name in ("menu-button", "saved-button"):
        page.locator(f".loom-{name}").first.evaluate("(button) => button.click()")
        expect(page.locator(".loom-popup")).to_be_visible()
        assert english(page) == []
        page.keyboard.press("Escape")
        expect(page.locator(".loom-popup")).to_have_count(0)


def test_the_picker(page: Page, words: dict[str, str]) -> None:
    page.locator(".loom-add").first.evaluate("(button) => button.click()")
    option = page.locator(".loom-option", has_text="ink")
    expect(option).to_be_visible()
    option.hover()
    expect(page.locator(".loom-detail .loom-word").first).to_be_visible()
    page.locator(".loom-star").first.click()
    assert english(page) == []
    page.locator(".loom-search").fill("\u65e0")
    expect(page.locator(".loom-empty")).to_contain_text(words["Nothing found here."])
    assert english(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("dialog.loom-picker")).to_have_count(0)


def test_train_lora_and_what_measures(page: Page, words: dict[str, str]) -> None:
    """Before a run, and after it."""
    expect(page.locator(".loom-body-headline")).to_have_text(words["Ready to train"])
    expect(page.locator(".loom-body-plan dt")).to_have_count(5)
    assert english(page) == []
    page.get_by_test_id("queue-button").click()
    expect(page.locator(".loom-body-headline")).to_contain_text(words["Done"])
    expect(page.locator(".loom-verdict")).to_have_count(2)
    assert english(page) == []
