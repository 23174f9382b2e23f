"""A sweep as a table and as one picture."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path

from ...lora_core.drawing.sheet import SheetRow, sheet
from ...lora_core.files.save import write_whole
from ..words import clock
from .figures import Figures, charts_of, figures_of, pictures_of
from .outcome import Outcome

_TILE, _WIDE, _MOST = 192, 640, 8  # pixels of a picture and of curves, pictures of a run


def write_table(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """Write `table.csv`, and return the table for a person: a line for each run, numbered from 1."""
    swept = [name for name, _ in outcomes[0].trial.values]
    heads = ["run", *swept, "outcome", "steps", "loss", "held-out loss", "time"]
    rows = [_row(number, outcome) for number, outcome in enumerate(outcomes, 1)]
    made = [[*outcome.files, *(run["folder"] for run in outcome.runs)] for outcome in outcomes]
    text = StringIO(newline="")
    whole = [[*row, outcome.problem, "; ".join(each)] for row, outcome, each in zip(rows, outcomes, made, strict=True)]
    csv.writer(text).writerows([[*heads, "problem", "files"], *whole])
    write_whole(folder / "table.csv", text.getvalue().encode("utf-8"))
    return _aligned([heads, *rows])


def write_sheet(folder: Path, outcomes: Sequence[Outcome]) -> Path | None:
    """Write `sheet.png`, the pictures of each run in a row of their own, or its curves where no run has pictures; None
    where there are no curves either."""
    for of, tile in ((pictures_of, _TILE), (charts_of, _WIDE)):
        numbered = [(number, outcome, of(outcome)[:_MOST]) for number, outcome in enumerate(outcomes, 1)]
        if rows := [SheetRow(_title(number, outcome), pictures) for number, outcome, pictures in numbered if pictures]:
            path, data = folder / "sheet.png", BytesIO()
            sheet(rows, tile=tile).save(data, "PNG")
            write_whole(path, data.getvalue())
            return path
    return None


def write_result(path: Path, status: int, outcomes: Sequence[Outcome]) -> None:
    """Write for programs how each run went: its settings, and what headless.py tells of a run."""
    each = [{"settings": outcome.trial.settings, **outcome.plain()} for outcome in outcomes]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"status": status, "trials": each}, indent=1).encode("utf-8"))


def overwritten(outcomes: Sequence[Outcome]) -> str:
    """Say which file several runs wrote, so that only the last one's is left; empty when each has its own."""
    written = Counter(file for outcome in outcomes for file in outcome.files)
    shared = [file for file, count in written.items() if count > 1]
    return f"several runs wrote {', '.join(shared)}: it is the last one's; run folders keep all" if shared else ""


def _row(number: int, outcome: Outcome) -> list[str]:
    found = figures_of(outcome)
    swept = [value for _, value in outcome.trial.values]
    steps = _each(found, lambda each: f"{each.step} of {each.total}")
    loss, held_out = _each(found, lambda each: _loss(each.loss)), _each(found, _held_out)
    time = clock(outcome.seconds) if outcome.seconds else ""
    return [str(number), *swept, outcome.outcome or "not begun", steps, loss, held_out, time]


def _title(number: int, outcome: Outcome) -> str:
    found = figures_of(outcome)
    losses = [f"loss {_loss(each.loss)}" for each in found if each.loss is not None]
    return ", ".join([f"{number}: {outcome.trial}", *losses])


def _each(found: Sequence[Figures], said: Callable[[Figures], str]) -> str:
    """Return what is said of each Train LoRA, one after the other."""
    return " / ".join(map(said, found))


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def _held_out(found: Figures) -> str:
    return "" if found.held_out is None else f"{found.held_out:.4f} at {found.best}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
