"""What `dev.py bench headless` has stored, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

STORED = Path(__file__).parent / "results" / "headless.json"


def commands(found: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Return the median of each way's rounds; `same bytes` is the worst of them."""
    lines = []
    for way in dict.fromkeys(row["way"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["way"] == way]
        start, whole, step = (median(row[name] for row in rows) for name in ("start", "whole", "step"))
        same = max((row["same"] for row in rows), key=lambda text: text != "yes")
        lines.append((way, f"{start:.1f}", f"{whole:.1f}", f"{1e3 * step:.0f}", same))
    return ("", "s to the first step", "s in all", "ms a step", "same bytes"), lines
