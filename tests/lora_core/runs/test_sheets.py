"""Single pictures are cut out of a sheet of previews; sheets of older runs are shown whole."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from harness.run_folders import COLOURS, sheet
from lora_loom.lora_core.runs import kept_picture, sheets
from lora_loom.lora_core.runs.sheets import Sheets
from PIL import Image, ImageColor
from PIL.PngImagePlugin import PngInfo

PROMPTS = [("a red fox", "a fox"), ("a tree",)]


def shown(found: tuple[str, bytes] | None) -> Image.Image:
    assert found is not None
    picture = Image.open(BytesIO(found[1]))
    assert picture.format == "JPEG" and not picture.info.get("lora_loom")
    return picture


def is_plain(picture: Image.Image, colour: str) -> bool:
    wanted = ImageColor.getrgb(colour)
    return all(low - 6 <= value <= high + 6 for (low, high), value in zip(picture.getextrema(), wanted, strict=True))


def test_each_picture_is_cut_out(tmp_path: Path) -> None:
    path, made = sheet(tmp_path, 10, PROMPTS, side=40), Sheets()
    for number in range(6):
        picture = shown(made.picture(path, number, 256))
        assert picture.size == (40, 40) and is_plain(picture, COLOURS[number])
    assert made.picture(path, 6, 256) is None
    assert shown(made.picture(path, 0, 20)).size == (20, 20) and shown(made.picture(path, 0, 0)).size == (16, 16)
    assert kept_picture.read(path, "note") is not None, "the note is what it was"


def test_a_sheet_without_parts_is_shown_whole(tmp_path: Path) -> None:
    path, made = sheet(tmp_path, 10, PROMPTS, parts=False), Sheets()
    assert shown(made.picture(path, 0, 2048)).size == Image.open(path).size and made.picture(path, 1, 256) is None


def test_a_sheet_that_changes_is_drawn_anew_and_another_size_is_another_tag(tmp_path: Path) -> None:
    path, made = sheet(tmp_path, 10, [("a",)]), Sheets()
    first = made.picture(path, 0, 64)
    later = path.stat().st_mtime + 10
    sheet(tmp_path, 10, [("b",), ("c",)])
    os.utime(path, (later, later))
    second = made.picture(path, 2, 64)
    assert first and second and first[0] != second[0] and is_plain(shown(second), COLOURS[2])


def test_a_picture_that_is_known_is_not_drawn(tmp_path: Path) -> None:
    path, made = sheet(tmp_path, 10, PROMPTS), Sheets()
    first = Sheets().picture(path, 1, 64)
    assert first and made.picture(path, 1, 64, ["other", first[0]]) == (first[0], b"") and not made._drawn
    whole = sheets.whole(path)
    assert whole and whole[1] and sheets.whole(path, [whole[0]]) == (whole[0], b"")
    assert made.picture(path, 1, 64, [f"{first[0]}0"]) == first


def test_little_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "_MOST", 2000)
    made = Sheets()
    for step in range(20):
        made.picture(sheet(tmp_path, step, PROMPTS), 0, 64)
    assert 1 <= len(made._drawn) <= 2


PARTS = (
    [{"row": 0, "prompt": "a", "kind": "lora", "box": [0, 0, 10**9, 10**9]}],
    [{"row": 0, "prompt": "a", "kind": "lora", "box": [5000, 5000, 6000, 6000]}],
    [{"row": 0, "prompt": "a", "kind": "lora", "box": [9, 9, 3, 3]}],
    [{"row": 0, "prompt": "a", "kind": "lora", "box": [-9, 0, 3, 3]}],
    [{"row": "x", "prompt": 5, "kind": "lora", "box": [0, 0, 3, 3]}],
    [{"row": 0, "prompt": "a", "kind": "lora", "box": "wide"}],
    [{"row": 0, "prompt": "a", "kind": "lora", "box": [0, 0, 1e999, 3]}],
    [{"box": [0, 0, 3, 3]}], [5], {"a": 1}, "text", 7, None,
)  # fmt: skip


@pytest.mark.parametrize("parts", PARTS, ids=range(len(PARTS)))
def test_what_a_sheet_tells_is_not_trusted(tmp_path: Path, parts: Any) -> None:
    path, info = tmp_path / "step_000001.png", PngInfo()
    info.add_text("lora_loom.parts", json.dumps(parts))
    Image.new("RGB", (32, 32)).save(path, pnginfo=info)
    assert shown(Sheets().picture(path, 0, 64)).width <= 32


def test_another_file_of_the_same_time_is_drawn_anew(tmp_path: Path) -> None:
    path, made = sheet(tmp_path, 10, [("a",)]), Sheets()
    os.utime(path, (1e9, 1e9))
    first = made.picture(path, 0, 64)
    sheet(tmp_path, 10, [("b",), ("c",)])
    os.utime(path, (1e9, 1e9))
    second = made.picture(path, 2, 64)
    assert first and second and first[0] != second[0] and is_plain(shown(second), COLOURS[2])


def test_parts_that_lie_upon_each_other_are_not_drawn(tmp_path: Path) -> None:
    box = (0, 0, 32, 32)
    for count, shown_as in ((2, 2), (3, 1)):
        path = tmp_path / f"step_{count:06d}.png"
        kept_picture.write(path, Image.new("RGB", (32, 32)), "note", [kept_picture.Part(0, "a", "lora", box)] * count)
        assert [Sheets().picture(path, number, 64) is not None for number in range(3)].count(True) == shown_as


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"nonsense", b"\0" * 100])
def test_what_is_no_picture_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "step_000001.png"
    path.write_bytes(data)
    assert Sheets().picture(path, 0, 64) is None and sheets.whole(path) is None
    assert kept_picture.parts_of(path) == () and Sheets().picture(tmp_path / "none.png", 0, 64) is None
