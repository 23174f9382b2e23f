"""A LoRA's health as the front end shows it: loudness by block and layer, what was repaired, and the rank in use."""

from __future__ import annotations

from collections.abc import Sequence

from ..drawing.measure import Cell, Curve, Line, Measure, Table
from ..families.blocks import block_of
from .health import ENERGY, Health, LayerFigures
from .health_words import findings, verdict
from .heat_map import percent
from .repair import Repair

_POINTS = 48  # of the curve


def health_measure(health: Health, repairs: Sequence[Repair], said: Sequence[str] = ()) -> Measure:
    """Return the verdict, the findings and what else is `said` (each after a word and a colon), tables, and the curve
    of what a rank holds."""
    told = _told([*findings(health), *said])
    tables = [told, _blocks(health), _layers(health), *([_repaired(repairs)] if repairs else [])]
    return Measure(verdict(health), tables=tuple(tables), curve=_curve(health))


def by_block(health: Health) -> dict[str, list[LayerFigures]]:
    """Return the layers by the name of their block, in the order of the LoRA."""
    found: dict[str, list[LayerFigures]] = {}
    for layer in health.layers:
        found.setdefault(str(block_of(layer.name)), []).append(layer)
    return found


def state(health: Health, layer: LayerFigures) -> str:
    """Return what is wrong with a layer in a word; empty where nothing is."""
    if layer.broken:
        return "broken"
    fence = health.fence(layer)
    if fence.dead(layer):
        return "dead"
    return "outlier" if fence.stands_out(layer) else "loud" if fence.loud(layer) else ""


def _told(sentences: Sequence[str]) -> Table:
    parts = [sentence.partition(": ") for sentence in sentences]
    lines = tuple(Line(name, (Cell(text[:1].upper() + text[1:]),)) for name, _, text in parts)
    return Table("facts", "What was found", "finding", ("what it is, and what was done",), lines)


def _blocks(health: Health) -> Table:
    shares = {name: health.share(layers) for name, layers in by_block(health).items()}
    most = max(shares.values(), default=0.0) or 1.0
    lines = tuple(Line(name, (Cell(percent(share), share / most),)) for name, share in shares.items())
    return Table("bars", "Strength by block, beside the base model", "block", ("share of the weights",), lines)


def _layers(health: Health) -> Table:
    ordered = sorted(health.layers, key=lambda layer: (not layer.broken, -health.times(layer)))
    most = max((layer.share for layer in health.layers), default=0.0) or 1.0
    columns = ("share of the weight", "times usual", "strongest direction", "rank used", "found")
    lines = tuple(Line(layer.name, _cells(health, layer, most)) for layer in ordered)
    note = "times usual: beside layers whose names differ in numbers alone"
    return Table("bars", "Layers, the loudest for their kind first", "layer", columns, lines, note=note, folded=True)


def _cells(health: Health, layer: LayerFigures, most: float) -> tuple[Cell | None, ...]:
    if layer.broken:
        return (None, None, None, None, Cell("broken"))
    known = bool(layer.base)
    return (
        Cell(percent(layer.share), layer.share / most) if known else None,
        Cell(f"{health.times(layer):.2g}") if known else None,
        Cell(percent(layer.top_share)) if known else None,
        Cell(f"{layer.effective_rank:.1f} of {layer.rank}"),
        Cell(state(health, layer)),
    )


def _repaired(repairs: Sequence[Repair]) -> Table:
    lines = tuple(Line(repair.layer, (Cell(repair.in_words()),)) for repair in repairs)
    return Table("plain", "What was repaired", "layer", ("done",), lines, folded=True)


def _curve(health: Health) -> Curve | None:
    kept = health.kept()
    if len(kept) < 2:
        return None
    ranks = sorted({1 + round(step * (len(kept) - 1) / (_POINTS - 1)) for step in range(_POINTS)})
    points = tuple((float(rank), kept[rank - 1]) for rank in ranks)
    told = tuple(f"rank {rank}: {100 * kept[rank - 1]:.1f} % of it" for rank in ranks)
    rank = health.rank_for()
    return Curve(f"Rank {rank} holds {100 * ENERGY:.0f} % of it", "rank", "held", points, told, (rank, kept[rank - 1]))
