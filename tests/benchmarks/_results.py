"""Keeps what `dev.py bench learn` has measured: a line of JSON for every run, written as it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import nan
from pathlib import Path
from statistics import median

LOUD, TWICE, DEFAULT = "0.1.0", "0.1.0, twice the rate", "ours"
DIRECTIONS, PRESERVING = "ours, quiet directions alone", "ours, preservation alone"
NATIVE, BEST = "ComfyUI", "ComfyUI, best of three rates"
SAME_TIME, STATES = ", same time", ", same time with the states"
DIGITS = 5
REFERENCES = TRUE, DECODED, BASE = "true pictures", "the same through the VAE", "base"


@dataclass(frozen=True)
class Marks:
    """Of one LoRA. `loss`, of the velocity on held-out pictures of the concept, and `neutral`, on pictures without it,
    over the base's, at noise levels spread evenly; `overlap`, `colour` and `error` as in `_judge.Verdict`, means over
    held-out prompts; `kin` and `change`, against the base, of prompts of the class without the new word and of
    unrelated prompts, 0..255."""

    loss: float = nan
    neutral: float = nan
    overlap: float = nan
    colour: float = nan
    error: float = nan
    kin: float = nan
    change: float = nan


@dataclass(frozen=True)
class Result:
    """One run: which row of the table, what it learned with which seed, in how many steps."""

    row: str
    concept: str
    seed: int
    steps: int
    marks: Marks


@dataclass(frozen=True)
class Cost:
    """One round's seconds of a row's runs of `steps` steps: with nothing kept of earlier runs, with everything kept
    that the trainer keeps, and the latter with `fewer` steps."""

    row: str
    round: int
    steps: int
    fewer: int
    fresh: float
    kept: float
    short: float

    @property
    def step(self) -> float:
        return (self.kept - self.short) / (self.steps - self.fewer)


@dataclass(frozen=True)
class Results:
    """All lines of a file. Of two of the same run the later one counts."""

    runs: Mapping[tuple[str, str, int], Result]
    costs: Mapping[tuple[str, int], Cost]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Results:
        runs, costs = {}, {}
        for line in _lines(paths):
            entry = json.loads(line)
            if "marks" in entry:
                run = Result(**entry | {"marks": Marks(**entry["marks"])})
                runs[run.row, run.concept, run.seed] = run
            else:
                costs[entry["row"], entry["round"]] = Cost(**entry)
        return cls(runs, costs)

    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _, _ in self.runs))

    def concepts(self) -> list[str]:
        return list(dict.fromkeys(concept for _, concept, _ in self.runs))

    def of(self, row: str, concept: str) -> list[Result]:
        """By seed."""
        return sorted((r for r in self.runs.values() if (r.row, r.concept) == (row, concept)), key=lambda r: r.seed)

    def rounds(self, row: str) -> dict[int, Cost]:
        return {round: cost for (name, round), cost in self.costs.items() if name == row}

    def ratio(self, row: str) -> float:
        """Return how many steps of 0.1.0 one of its steps takes, the median of the rounds."""
        pairs = self._paired(row)
        return median(own.step / loud.step for own, loud in pairs)

    def once(self, row: str) -> float:
        """Return how many steps of 0.1.0 are taken by what is made once for a base and kept."""
        return median((own.fresh - own.kept - loud.fresh + loud.kept) / loud.step for own, loud in self._paired(row))

    def fitting(self, row: str, states: bool) -> int:
        """Return how many of its steps fit into the time of a whole run of 0.1.0, with all that comes before and after
        them: what is kept of earlier runs is there, or, for `states`, nothing is."""
        found = []
        for own, loud in self._paired(row):
            given, beside = (loud.fresh, own.fresh) if states else (loud.kept, own.kept)
            found.append((given - (beside - own.step * own.steps)) / own.step)
        return int(median(found))

    def _paired(self, row: str) -> list[tuple[Cost, Cost]]:
        loud, own = self.rounds(LOUD), self.rounds(row)
        if not (pairs := [(own[one], loud[one]) for one in own if one in loud]):
            raise ValueError(f"what '{row}' costs was not measured: run `dev.py bench learn --time` into the same file")
        return pairs

    def but(self, runs: Iterable[Result]) -> Results:
        """The same with more runs, or others in their place."""
        return replace(self, runs={**self.runs, **{(r.row, r.concept, r.seed): r for r in runs}})


def append(path: Path, entry: Result | Cost) -> None:
    """One write, so that several processes may share a file."""
    fields = asdict(entry)
    fields |= {"marks": _rounded(fields["marks"])} if "marks" in fields else _rounded(fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps(fields) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _rounded(fields: Mapping[str, object]) -> dict[str, object]:
    """Without what was not measured."""
    found = {name: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for name, v in fields.items()}
    return {name: value for name, value in found.items() if value == value}


def _lines(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        if path.exists():
            yield from (line for line in path.read_text("ascii").splitlines() if line)
