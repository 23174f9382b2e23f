"""Turns what `dev.py bench learn` has stored into tables, and into the goals beside what was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import isnan, nan
from statistics import mean, median
from typing import NamedTuple

from benchmarks._results import (
    BASE,
    BEST,
    DECODED,
    DEFAULT,
    DIRECTIONS,
    LOUD,
    NATIVE,
    PRESERVING,
    SAME_TIME,
    STATES,
    TRUE,
    TWICE,
    Result,
    Results,
)  # fmt: skip

Line = tuple[str, ...]
FIRST = (DEFAULT, DIRECTIONS, PRESERVING, LOUD, TWICE, NATIVE, BEST, DEFAULT + SAME_TIME, DIRECTIONS + SAME_TIME)
ORDER = (*FIRST, DEFAULT + STATES)
LAST = BASE, DECODED, TRUE


class Column(NamedTuple):
    title: str
    field: str  # of Marks
    digits: int


COLUMNS = (
    Column("held-out loss", "loss", 3),
    Column("overlap", "overlap", 2),
    Column("error", "error", 1),
    Column("class", "kin", 1),
    Column("unrelated", "change", 1),
    Column("neutral", "neutral", 2),
)


class Goal(NamedTuple):
    """One that was set for the default, and what it reached."""

    text: str
    wanted: str
    reached: str
    met: bool


def with_best(results: Results) -> Results:
    """With the row of ComfyUI's rates of which each concept has the one with the highest mean overlap."""
    runs = []
    for concept, row in best_rates(results).items():
        runs += [replace(run, row=BEST) for run in results.of(row, concept)]
    return results.but(runs)


def best_rates(results: Results) -> dict[str, str]:
    """By concept, which of ComfyUI's rows has the highest mean overlap; nothing while a rate is missing."""
    rates = [row for row in results.rows() if row == NATIVE or row.startswith(f"{NATIVE}, 0.")]

    def overlap(row: str, concept: str) -> float:
        return mean(run.marks.overlap for run in results.of(row, concept))

    whole = [one for one in results.concepts() if len(rates) > 1 and all(results.of(row, one) for row in rates)]
    return {one: max(rates, key=lambda row, one=one: overlap(row, one)) for one in whole}


def by_seed(results: Results, row: str, concepts: Sequence[str], field: str) -> list[float]:
    """The mean over concepts for each seed that all of them have."""
    found = [{run.seed: getattr(run.marks, field) for run in results.of(row, concept)} for concept in concepts]
    seeds = set.intersection(*map(set, found)) if found else set()
    return [mean(each[seed] for each in found) for seed in sorted(seeds)]


def rows_of(results: Results, concepts: Sequence[str]) -> list[str]:
    """Those that have every concept, in the order of the table."""
    whole = [row for row in results.rows() if by_seed(results, row, concepts, "overlap")]
    others = [row for row in whole if row not in (*ORDER, *LAST) and not row.startswith(f"{NATIVE}, 0.")]
    return [row for row in (*ORDER, *others, *LAST) if row in whole]


def means(results: Results, concepts: Sequence[str]) -> tuple[Line, list[Line]]:
    """Header and lines: by row, mean [least..most] over seeds of the mean over concepts."""
    lines = []
    for row in rows_of(results, concepts):
        cells = (spread(by_seed(results, row, concepts, column.field), column.digits) for column in COLUMNS)
        seeds = len(by_seed(results, row, concepts, "overlap"))
        told = ("", "") if row in LAST else (str(seeds), str(_steps(results, row)))
        lines.append((row, *told, *cells, seconds(results, row)))
    return ("", "seeds", "steps", *(column.title for column in COLUMNS), "CPU s"), lines


def spread(values: Sequence[float], digits: int) -> str:
    if not values or any(map(isnan, values)):
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def seconds(results: Results, row: str) -> str:
    """Of a run with nothing kept of earlier ones, the median of the rounds."""
    found = [cost.fresh for cost in results.rounds(row).values()]
    return f"{median(found):.1f}" if found else ""


def costs(results: Results) -> tuple[Line, list[Line]]:
    """Header and lines: what a step takes beside one of 0.1.0, and what is made once for a base."""
    rows = list(dict.fromkeys(row for row, _ in results.costs))
    lines = [
        (
            row,
            str(len(results.rounds(row))),
            seconds(results, row),
            f"{results.ratio(row):.2f}",
            f"{results.once(row):.0f}" if row in (DEFAULT, DIRECTIONS) else "",
        )  # fmt: skip
        for row in rows
        if results.rounds(LOUD)
    ]
    return ("", "rounds", "CPU s", "a step / 0.1.0's", "once per base, in steps of 0.1.0"), lines


def by_concept(results: Results, concepts: Sequence[str], rows: Sequence[str]) -> list[Line]:
    """Lines: by concept, each column's means over seeds of these rows, between slashes."""
    return [
        (one, *(" / ".join(f"{_mean(results, row, one, c.field):.{c.digits}f}" for row in rows) for c in COLUMNS))
        for one in concepts
    ]


def goals(results: Results, concepts: Sequence[str]) -> Iterator[Goal]:
    """What was set for the default beside what it reached, by means over seeds and concepts."""

    def per_concept(row: str, other: str, field: str, how: Callable[[float, float], float]) -> list[float]:
        return [how(_mean(results, row, c, field), _mean(results, other, c, field)) for c in concepts]

    def ratio(text: str, other: str, field: str, most: float) -> Goal:
        found = _over(results, DEFAULT, concepts, field) / _over(results, other, concepts, field)
        each = per_concept(DEFAULT, other, field, lambda a, b: a / b)
        told = f"{found:.2f} (by concept {min(each):.2f} to {max(each):.2f})"
        return Goal(text, f"at most {most:.2f}", told, found <= most)

    yield ratio("unrelated, times ComfyUI's", NATIVE, "change", 1 / 3)
    yield ratio("class, times ComfyUI's", NATIVE, "kin", 1 / 3)
    yield ratio("unrelated, times that of 0.1.0", LOUD, "change", 0.3)
    yield ratio("class, times that of 0.1.0", LOUD, "kin", 0.3)
    yield ratio("held-out loss, times that of 0.1.0", LOUD, "loss", 1.05)
    yield ratio("error, times that of 0.1.0", LOUD, "error", 1.0)
    ours, before = (_over(results, row, concepts, "overlap") for row in (DEFAULT, LOUD))
    yield Goal("overlap, beside that of 0.1.0", f"at least {before:.2f}", f"{ours:.2f}", ours >= before)
    lost = per_concept(DEFAULT, LOUD, "overlap", lambda a, b: b - a)
    worst = concepts[lost.index(max(lost))]
    yield Goal("overlap lost on one concept", "at most 0.05", f"{max(lost):.2f} ({worst})", max(lost) <= 0.05)
    burnt = per_concept(DEFAULT, LOUD, "error", lambda a, b: a / b)
    worst = concepts[burnt.index(max(burnt))]
    yield Goal("error on one concept, times that of 0.1.0", "at most 1", f"{max(burnt):.2f} ({worst})", max(burnt) <= 1)
    for suffix, said in ((SAME_TIME, "states kept"), (STATES, "states counted")):
        text, wanted = f"overlap at equal time, {said}", f"at least {before:.2f}"
        if by_seed(results, DEFAULT + suffix, concepts, "overlap"):
            found, steps = _over(results, DEFAULT + suffix, concepts, "overlap"), _steps(results, DEFAULT + suffix)
            yield Goal(text, wanted, f"{found:.2f} in {steps} steps", found >= before)
        elif results.rounds(DEFAULT) and results.fitting(DEFAULT, suffix == STATES) < 1:
            once = f"no step is left: the states take {results.once(DEFAULT):.0f} steps of 0.1.0"
            yield Goal(text, wanted, once, False)


def _steps(results: Results, row: str) -> int:
    return next(run.steps for run in results.runs.values() if run.row == row)


def _mean(results: Results, row: str, concept: str, field: str) -> float:
    found: list[Result] = results.of(row, concept)
    return mean(getattr(run.marks, field) for run in found) if found else nan


def _over(results: Results, row: str, concepts: Sequence[str], field: str) -> float:
    return mean(_mean(results, row, concept, field) for concept in concepts)
