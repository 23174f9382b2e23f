"""Which runs a sweep is made of: every combination of the values that are asked for."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

_DIGITS = 10  # of a key


@dataclass(frozen=True)
class Swept:
    """The values of one input, as `--sweep rank=8,16,32` gives them."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Swept:
        """A value with a comma in it stands in double quotes. Raises ValueError for what names no input or no value, or
        one value twice."""
        name, sign, values = text.partition("=")
        found = tuple(each.strip() for each in next(csv.reader([values], skipinitialspace=True), []))
        if not (name.strip() and sign and found and all(found)):
            raise ValueError(f"--sweep {text} does not say which values; write it as --sweep rank=8,16,32")
        if twice := next((each for each in found if found.count(each) > 1), ""):
            raise ValueError(f"--sweep {text} has {twice} twice; each value is a run of its own")
        return cls(name.strip(), found)


@dataclass(frozen=True)
class Trial:
    """One run. `key` tells it from every other by the workflow and all settings, whatever else is swept beside."""

    key: str
    values: tuple[tuple[str, str], ...]

    @property
    def settings(self) -> list[str]:
        """Return them as `--set` takes them."""
        return [f"{name}={value}" for name, value in self.values]

    def __str__(self) -> str:
        return ", ".join(self.settings)


def trials(workflow: bytes, always: Sequence[str], swept: Sequence[Swept]) -> list[Trial]:
    """Return the runs, the last input changing fastest; `always` are settings of all of them. Raises ValueError for an
    input that is swept twice."""
    names = [each.name for each in swept]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"--sweep names {twice} twice; write all of its values into one")
    found = product(*([(each.name, value) for value in each.values] for each in swept))
    return [Trial(_key(workflow, always, values), values) for values in found]


def combinations(sweeps: Sequence[str]) -> list[list[str]]:
    """Return the settings of each run of a sweep that is written so; one run without any where nothing is swept."""
    return [trial.settings for trial in trials(b"", (), [Swept.read(each) for each in sweeps])]


def _key(workflow: bytes, always: Sequence[str], values: Sequence[tuple[str, str]]) -> str:
    plain = json.dumps([sorted(always), sorted(values)])
    return hashlib.sha256(workflow + plain.encode()).hexdigest()[:_DIGITS]
