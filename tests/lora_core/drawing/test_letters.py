"""Pictures with words on them, also with the Pillow before 10.1, whose font has one size and knows Latin-1 alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from lora_loom.lora_core.data.contact_sheet import contact_sheet
from lora_loom.lora_core.data.reading import from_folder
from lora_loom.lora_core.drawing import letters
from lora_loom.lora_core.drawing.plot import draw_curve
from lora_loom.lora_core.drawing.sheet import SheetRow, sheet
from PIL import Image, ImageFont

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def old(monkeypatch) -> None:
    """Make Pillow as old as 9.5: no size for the font that comes with it, and no `has_transparency_data`."""
    bitmap = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()
    monkeypatch.setattr(ImageFont, "load_default", lambda: bitmap)
    monkeypatch.delattr(Image.Image, "has_transparency_data", raising=False)
    letters.font.cache_clear()
    yield
    letters.font.cache_clear()


def ink(image: Image.Image) -> np.ndarray:
    return (np.asarray(image.convert("L")) > 100).nonzero()


def test_an_old_pillow_reads_and_draws(old, tmp_path: Path) -> None:
    for name, mode in (("a.png", "RGBA"), ("b.png", "P"), ("c.png", "LA")):
        Image.new("RGB", (80, 64), "teal").convert(mode).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("\u732b, a cat, caf\u00e9", encoding="utf-8")
    data = from_folder(tmp_path, "sks", 64, 16, 1)
    assert contact_sheet(data).size == (408, 168)
    assert draw_curve([1.0, 0.5], 2).size == (512, 256)
    page = sheet([SheetRow("\u72d7 of \u201csks\u201d", [Image.new("RGB", (64, 64))], ["\u2013"])], "heading")
    assert len(ink(page)[0])


@pytest.mark.parametrize(("anchor", "across", "down"), [("la", 0, 0), ("ra", 1, 0), ("mm", 0.5, 0.5), (None, 0, 0)])
def test_words_stand_where_they_should(old, anchor: str | None, across: float, down: float) -> None:
    """Old Pillows leave that to the font."""
    mask, offset = letters.font(10).getmask2("words", "L", anchor=anchor)
    assert offset == pytest.approx((-across * mask.size[0], -down * mask.size[1]), abs=0.5)


def test_sizes_where_there_are_some() -> None:
    if not isinstance(letters.font(10), ImageFont.FreeTypeFont):
        pytest.skip("this Pillow has one size")
    small, large = (letters.font(size).getlength("words") for size in (10, 20))
    assert large == pytest.approx(2 * small, rel=0.1)


def test_nobody_asks_pillow_for_what_it_had_not_always() -> None:
    """Fonts come from `letters`, transparency from `decoding`, and pictures of others are opened there alone."""
    found = [
        f"{path.name}: {match[0]}"
        for folder in ("lora_core", "nodes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for match in re.finditer(
            r"\.has_transparency_data|load_default\(|Image\.open\(", path.read_text(encoding="utf-8")
        )
    ]
    assert found == [
        "decoding.py: Image.open(",
        "letters.py: load_default(",
        "letters.py: load_default(",
    ]
