"""The page of a check: what stands first, what fails it, and what is never in it."""

from __future__ import annotations

import json

import pytest
from lora_loom.lora_core.analysis.device_check import Check, CheckFinding, without_paths

RIGHT = CheckFinding("right", "stack", True, "weights 5e-07 from the exact sum", {"weights": 5e-7})
WRONG = CheckFinding("right", "padded batch", False, "RuntimeError: two devices")
LEFT_OUT = CheckFinding("memory", "SDXL", None, "left out: 20.0 GB and 8.0 GB is free")
MEASURED = CheckFinding("time", "all", None, "step 1.31 x frozen, GPU busy 58%: launch-bound", verdict=True)


def test_failures_stand_first_and_decide() -> None:
    found = Check({"Device": "a | b"}, [RIGHT, LEFT_OUT, WRONG, MEASURED], 61.0)
    assert not found.passed
    assert found.verdicts() == [
        "FAIL padded batch: RuntimeError: two devices",
        "1 checks passed, 1 failed",
        MEASURED.text,
    ]
    page = found.page()
    assert page.index("FAIL padded") < page.index("1.31 x frozen") < page.index("## System") < page.index("## Memory")
    assert "| stack | ok | weights 5e-07 from the exact sum |" in page
    told = json.loads(found.as_json())
    assert told["passed"] is False and told["findings"][0]["figures"] == {"weights": 5e-7}


def test_it_passes_only_when_something_was_looked_at() -> None:
    assert Check({}, [RIGHT, LEFT_OUT, MEASURED], 1.0).passed
    assert Check({}, [RIGHT], 1.0).verdicts() == ["all 1 checks passed"]
    assert not Check({}, [LEFT_OUT, MEASURED], 1.0).passed and not Check({}, [], 1.0).passed


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no file '/home/ann/ComfyUI/models/x.safetensors' here", "no file 'x.safetensors' here"),
        (r"C:\Users\Ann\ComfyUI\main.py: gone", "main.py: gone"),
        ("see ~/secret/key", "see key"),
        (r"\\server\share\a.png", "a.png"),
        ("3/4 of 1.5 GB/s at step 2 / 5", "3/4 of 1.5 GB/s at step 2 / 5"),
    ],
)
def test_paths_are_cut_down(text: str, wanted: str) -> None:
    assert without_paths(text) == wanted
