"""Captions by a workflow of a person's own, in both renderers."""

from __future__ import annotations

import json
from pathlib import Path

from harness.browser import FrontEnd
from harness.server import ComfyServer
from playwright.sync_api import expect

from .pages import closed, page_of, said, shot

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
