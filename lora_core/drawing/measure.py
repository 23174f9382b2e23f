"""Figures as the front end shows them: a verdict, what to do, tables, a curve and pictures. They are of what the report
is written of, and of a bounded size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

MOST_LINES, MOST_CELLS, MOST_PICTURES = 200, 2000, 48
_MOST_LETTERS = 300  # of a name or a sentence
Kind = Literal["heat", "bars", "plain", "said", "facts"]


@dataclass(frozen=True)
class Cell:
    """A figure in words. `strength` from -1 to 1 is its place on the table's scale, a colour or the length of a bar;
    `told` says in full what it is."""

    text: str
    strength: float = 0.0
    told: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table; None where there is no figure."""

    name: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """`corner` heads the names of the rows. Of bars only the first column is drawn; `ends` are the words at the ends
    of a heat map's scale, the first one of "chance" where it has one side. Those `said` hold
    sentences. `folded` is what is not seen at once."""

    kind: Kind
    title: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    ends: tuple[str, str] = ("", "")
    note: str = ""
    folded: bool = False

    def bounded(self) -> Table:
        """Return the table with as many of its first rows as are sent."""
        most = min(MOST_LINES, MOST_CELLS // max(len(self.columns), 1))
        left = len(self.lines) - most
        if left <= 0:
            return self
        note = f"{left} more are in the report" if self.kind != "heat" else f"{left} more are in figures"
        return replace(self, lines=self.lines[:most], note="; ".join(filter(None, (self.note, note))))


@dataclass(frozen=True)
class Curve:
    """`points` are (x, y) with a sentence for each in `told`; `mark` is the point that was chosen, or None."""

    title: str
    across: str
    up: str
    points: tuple[tuple[float, float], ...]
    told: tuple[str, ...]
    mark: tuple[float, float] | None = None


@dataclass(frozen=True)
class Measure:
    """`verdict` and `advice` are a sentence each. `live` is what the front end needs to ask for other settings, `rows`
    are pictures by what stands above them: files of ComfyUI's, each with a label."""

    verdict: str
    advice: str = ""
    tables: tuple[Table, ...] = ()
    curve: Curve | None = None
    live: Mapping[str, Any] | None = None
    rows: tuple[tuple[str, tuple[Mapping[str, str], ...]], ...] = field(default=())

    def asked_with(self, inputs: Mapping[str, Any]) -> Measure:
        """Return the measure with the node's inputs that it was asked with, where it can be asked for others."""
        return replace(self, live={**self.live, "asked": inputs}) if self.live is not None else self

    def plain(self) -> dict[str, Any]:
        """Return what is sent."""
        bounded = replace(self, tables=tuple(table.bounded() for table in self.tables))
        return _short(_packed(asdict(bounded)))

    def as_json(self) -> str:
        """Return it as ComfyUI takes it for no picture, whatever it holds: a text in a node's output."""
        return json.dumps(self.plain(), separators=(",", ":"), allow_nan=False)


def bars(title: str, corner: str, columns: Sequence[str], figures: Sequence[tuple[str, Sequence[float]]]) -> Table:
    """Return a table of numbers by name, each row's first one drawn as a share of the largest."""
    most = max((values[0] for _, values in figures), default=0.0) or 1.0
    lines = [
        Line(name, tuple(Cell(f"{v:.4f}", v / most if at == 0 else 0.0) for at, v in enumerate(values)))
        for name, values in figures
    ]
    return Table("bars", title, corner, tuple(columns), tuple(lines))


def _packed(value: Any) -> Any:
    """Cells as short lists."""
    if isinstance(value, dict):
        if value.keys() == {"text", "strength", "told"}:
            strength = value["strength"] if math.isfinite(value["strength"]) else 0.0
            return [value["text"], round(strength, 3), value["told"]]
        return {key: _packed(item) for key, item in value.items()}
    return [_packed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> Any:
    """Bounded, and without numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value if len(value) <= _MOST_LETTERS else f"{value[: _MOST_LETTERS - 3]}..."
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value
