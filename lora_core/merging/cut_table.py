"""Tells what a cut costs, as the front end shows it: size and error in a sentence, the curve of both, and every
layer."""

from __future__ import annotations

import torch

from ..drawing.measure import Cell, Curve, Line, Measure, Table
from .chart import as_range, together
from .outlook import Loss

_POINTS = 48  # of the curve


def cut_measure(loss: Loss, advice: str = "") -> Measure:
    """Say first what is lost; `advice` is what else a person has to know."""
    kept = [rank for rank in loss.ranks.values() if rank]
    size = f"{as_range(kept)}, {megabytes(loss.parameters)}" if kept else "0"
    told = f"{_percent(loss.error)} of {loss.what} is lost" if any(loss.errors.values()) else "Nothing is lost"
    verdict = f"{told}: {len(kept)} layers of rank {size} as fp16."
    return Measure(verdict, advice, (_layers(loss),), _curve(loss))


def error_measure(whole: float, errors: dict[str, float], verdict: str) -> Measure:
    """Return the same where only the errors are known."""
    worst = sorted(errors, key=errors.__getitem__, reverse=True)
    lines = tuple(Line(name, (_error(errors[name], max(errors.values())),)) for name in worst)
    table = Table("bars", "Layers that lose most", "layer", ("error",), lines, note=f"all together {_percent(whole)}")
    return Measure(verdict, "", (table,) if lines else ())


def megabytes(parameters: int) -> str:
    """As fp16."""
    return f"{2 * parameters / 1e6:.1f} MB"


def _layers(loss: Loss) -> Table:
    most = max(loss.errors.values(), default=0.0)
    worst = sorted(loss.errors, key=loss.errors.__getitem__, reverse=True)
    if not most:
        tallest = max(loss.ranks.values(), default=0) or 1
        lines = [Line(name, (Cell(str(rank), rank / tallest),)) for name, rank in loss.ranks.items()]
        return Table("bars", "Rank of each layer", "layer", ("rank",), tuple(lines), folded=True)
    lines = [Line(name, (_error(loss.errors[name], most), Cell(str(loss.ranks[name])))) for name in worst]
    return Table("bars", "Layers that lose most", "layer", ("error", "rank"), tuple(lines), folded=True)


def _error(error: float, most: float) -> Cell:
    return Cell(_percent(error), error / most if most else 0.0)


def _percent(error: float) -> str:
    """In the figures of the report."""
    return f"{100 * error:.3g} %"


def _curve(loss: Loss) -> Curve | None:
    """Size and error if every layer had at most that rank."""
    known = [name for name in loss.spectra if len(loss.spectra[name])]
    if not known:
        return None
    longest = max(len(loss.spectra[name]) for name in known)
    lengths = torch.tensor([len(loss.spectra[name]) for name in known])
    widths = torch.tensor([loss.widths[name] for name in known])
    left = together([loss.spectra[name] for name in known]).square().flip(0).cumsum(0).flip(0)
    ranks = sorted({1 + round(step * (longest - 1) / (_POINTS - 1)) for step in range(_POINTS)})
    errors = [float((left[rank] / left[0]).sqrt()) if rank < longest and left[0] else 0.0 for rank in ranks]
    sizes = [int((widths * lengths.clamp(max=rank)).sum()) for rank in ranks]
    told = tuple(
        f"rank {rank}: {_percent(error)} is lost, {megabytes(size)}"
        for rank, error, size in zip(ranks, errors, sizes, strict=True)
    )
    points = tuple(zip(map(float, ranks), errors, strict=True))
    chosen = max((rank for rank in loss.ranks.values()), default=0)
    return Curve("Error by rank", "rank", "error", points, told, (float(min(chosen, longest)), loss.error))
