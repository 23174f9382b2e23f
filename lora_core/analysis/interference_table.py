"""Interference as the front end shows it: each figure of every pair, over all blocks and in each."""

from __future__ import annotations

from collections.abc import Collection

from ..drawing.measure import MOST_CELLS, Cell, Line, Measure, Table
from .figures import BlockFigures, Interference
from .findings import Norms, agreement, headline, letter, loudness, suggested, suggestion
from .heat_map import Panel, panels, percent
from .heat_map import loudness as beside_base


def interference_measure(found: Interference, base: Norms | None = None, fixed: Collection[int] = ()) -> Measure:
    """`base` holds the norms of the base model's weights; the strengths of `fixed` are left alone."""
    shown = panels(found) if found.pairs else []
    tables = [_pairs(found, panel, folded=at > 0) for at, panel in enumerate(shown)]
    tables += [_blocks(found, panel) for panel in shown if len(found.blocks) * len(found.pairs) <= MOST_CELLS]
    if loud := beside_base(found, base or {}):
        most = max(loud.values()) or 1.0
        lines = tuple(Line(block, (Cell(percent(share), share / most),)) for block, share in loud.items())
        tables.append(Table("bars", "Sum relative to the base model", "block", ("norm",), lines, folded=True))
    advice = [loudness(found), suggestion(found, suggested(found, fixed))]
    return Measure(headline(found), " ".join(advice), tuple(tables))


def _pairs(found: Interference, panel: Panel, folded: bool) -> Table:
    """A row for each LoRA, with those before it."""
    count = len(found.names)
    lines = [
        Line(f"{letter(i)} {name}", tuple(_cell(found, panel, found.total, j, i) for j in range(i)))
        for i, name in enumerate(found.names)
    ]
    columns = tuple(letter(i) for i in range(count - 1))
    return Table("heat", panel.title.capitalize(), "LoRA", columns, tuple(lines), panel.ends, folded=folded)


def _blocks(found: Interference, panel: Panel) -> Table:
    """A row for each block, with every pair."""
    lines = [
        Line(block.name, tuple(_cell(found, panel, block, i, j) for i, j in found.pairs))
        for block in (*found.blocks, found.total)
    ]
    columns = tuple(letter(i) + letter(j) for i, j in found.pairs)
    title = f"{panel.title.capitalize()} by block"
    return Table("heat", title, "block", columns, tuple(lines), panel.ends, folded=True)


def _cell(found: Interference, panel: Panel, block: BlockFigures, i: int, j: int) -> Cell | None:
    made = panel.cell(block, i, j)
    if made is None:
        return None
    figure = made.text or "no more than chance"
    if panel.two_sided and block is found.total:
        figure = agreement(found, i, j)
    return Cell(made.text, made.strength, f"{found.names[i]} and {found.names[j]}, {block.name}: {figure}")
