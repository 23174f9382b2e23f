"""The table of `dev.py bench learn --joined`, which writes it into docs/figures.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks._publish import FIGURES, markdown

STORED = Path(__file__).parent / "results" / "joined.jsonl"
MARKS = "<!-- joined: written by `dev.py bench learn --joined --write` -->\n", "<!-- /joined -->\n"
PAIRS = (("heart", "arrow"), ("heart", "lined"))
BASE, EACH, APART, JOINED, LOUD, NATIVE = (
    "base", "ours, one run each", "ours, kept apart", "ours", "0.1.0", "ComfyUI",
)  # fmt: skip
ROWS = BASE, EACH, APART, JOINED, LOUD, NATIVE
COLUMNS = {
    "overlap": ("overlap", 2), "error": ("error", 1), "other": ("under the other's trigger", 2),
    "none": ("under none", 2), "kin": ("class", 1), "change": ("unrelated", 1),
    "told_other": ("told: other's", 2), "told_none": ("told: none", 2),
}  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()] if path.exists() else []


def lines(found: Sequence[Mapping[str, Any]], pair: Sequence[str]) -> tuple[Sequence[str], list[list[str]]]:
    """Return the table of a pair: means over both concepts, with the least and the most of the seeds."""
    rows = []
    for name in ROWS:
        runs = [each["figures"].values() for each in found if each["row"] == name and each["pair"] == list(pair)]
        cells = [
            _cell([[f[key] for f in run if key in f] for run in runs], digits) for key, (_, digits) in COLUMNS.items()
        ]
        rows.append([name, str(len(runs)) if name != BASE else "", *cells])
    return ("", "seeds", *(title for title, _ in COLUMNS.values())), rows


def _cell(runs: Sequence[Sequence[float]], digits: int) -> str:
    means = [mean(run) for run in runs if run]
    if not means:
        return ""
    spread = f" [{min(means):.{digits}f}..{max(means):.{digits}f}]" if len(means) > 1 else ""
    return f"{mean(means):.{digits}f}{spread}"


def publish(stored: Path = STORED, page: Path = FIGURES) -> None:
    before, _, rest = page.read_text("utf-8").partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{section(read(stored))}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", "utf-8")


def section(found: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(f"*{' + '.join(pair)}*:\n\n{markdown(*lines(found, pair))}" for pair in PAIRS) + "\n"
