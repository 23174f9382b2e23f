"""The dialog that chooses LoRAs, with three thousand of them, for the tests of it: its files, and what is seen of it."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from harness.browser import EMPTY, FrontEnd
from playwright.sync_api import Locator, Page, expect

COUNT = 3000
SAYS = {"SDXL": "stable-diffusion-xl-v1-base", "FLUX.1 dev": "flux-1-dev", "": ""}
FOLDERS = ("many/styles/ink", "many/styles/oil", "many/people", "many")
HOSTILE = "<img src=x onerror=window.hit=1>"
LISTED = "b" * 64  # what a takedown list says of zz_big
LIST = Path("user") / "__lora_loom" / "takedown" / "community.jsonl"
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


def write_list(path: Path) -> None:
    path.parent.mkdir(parents=True)
    about = {"content_sha256": LISTED, "reason": "withdrawn", "date": "2026-11-30", "issuer": "Ada"}
    path.write_text(json.dumps(about), encoding="utf-8")


def write_many(root: Path) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        family = list(SAYS)[number % 3]
        about = {"modelspec.architecture": SAYS[family], "modelspec.trigger_phrase": f"sks{number}"}
        path = root / FOLDERS[number % 4] / f"lora_{number:04}.safetensors"
        path.write_bytes(lora(about if family else {}))
    people = root / "many/people"
    (people / "zz_big.safetensors").write_bytes(lora({"lora_loom.content_hash": LISTED}, rank=64))
    (people / "zz_broken.safetensors").write_bytes(b"<html>not found</html>")
    (people / "zz_side.safetensors").write_bytes(lora({}))
    (people / "zz_side.civitai.info").write_text(json.dumps({
        "trainedWords": ["brush, wet paper", HOSTILE], "baseModel": "Illustrious", "creator": {"username": "ada"},
        "model": {"name": HOSTILE, "allowDerivatives": False}, "description": f"<p>Best at 0.7</p>{HOSTILE * 2}",
    }))  # fmt: skip


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


def afresh(front: FrontEnd) -> Page:
    """Opened in a page that knows nothing any more; once, as it is the same dialog in both renderers."""
    if not front.page.evaluate("() => LiteGraph.vueNodesMode"):
        front.page.reload()
        front.page.wait_for_function("() => window.app?.vueAppReady && window.app.isGraphReady", timeout=120_000)
        front.settle()
        front.load_workflow(EMPTY)
    return reopened(front)


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


def saved(path: Path) -> dict[str, Any]:
    """The file, which may be half written while it is looked at."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


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
