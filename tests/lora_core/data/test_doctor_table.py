"""What the front end shows of Dataset Doctor's findings."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_loom.lora_core.data.doctor_table import findings_measure
from lora_loom.lora_core.data.finding import DatasetFinding
from lora_loom.lora_core.data.reading import from_folder
from lora_loom.lora_core.drawing.measure import Cell
from PIL import Image


def test_the_verdict_comes_first_and_the_urgent_next(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / name)
    data = from_folder(tmp_path, "sks", 64, 16, 1)
    mild = DatasetFinding(1, "the caption of a.png is long: put what matters first.", "long", data.examples[:1])
    urgent = DatasetFinding(3, "there are only class images: combine them.")
    found = findings_measure(data, [urgent, mild])
    assert found.verdict == "Do not train yet: 1 of 2 findings in 2 pictures will spoil the result."
    assert [table.title for table in found.tables] == ["Will spoil the result (1)", "Worth a look (1)"]
    lines = [(line.name, *(cell.text for cell in line.cells if cell)) for table in found.tables for line in table.lines]
    assert lines == [
        ("set", "all", "There are only class images: combine them."),
        ("long", "1", "The caption of a.png is long: put what matters first."),
    ]
    (named,) = findings_measure(data, [DatasetFinding(1, "a.png is small.")]).tables
    assert named.lines[0].cells[1] == Cell("a.png is small."), "a file's name stays as it is"
    assert findings_measure(data, [mild]).verdict == (
        "The data set can be trained; 1 finding in 2 pictures would make it better."
    )
    assert findings_measure(data, []).verdict == "No problem was found in 2 pictures." and found.as_json()


@pytest.mark.parametrize("urgency", [1, 2, 3])
def test_every_urgency_has_a_table(tmp_path: Path, urgency: int) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    data = from_folder(tmp_path, "sks", 64, 16, 1)
    (table,) = findings_measure(data, [DatasetFinding(urgency, "a sentence.")]).tables
    assert len(table.lines) == 1
