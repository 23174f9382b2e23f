"""How a run of a sweep went, as it is found in the sweep's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..trials import Trial

_KEYS = ("status", "outcome", "problem", "seconds", "files", "runs")


@dataclass(frozen=True)
class Outcome:
    """`status` is the exit status of the process, None of a run that was not begun. `files` are what it wrote, `runs`
    what is known of each Train LoRA, as headless.py's result has them."""

    trial: Trial
    status: int | None = None
    outcome: str = ""
    problem: str = ""
    seconds: float = 0.0
    files: Sequence[str] = ()
    runs: Sequence[dict[str, Any]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return it as headless.py's result has it."""
        return {key: getattr(self, key) for key in _KEYS}

    @property
    def done(self) -> bool:
        """Return whether it came to its end and what it made is still there."""
        made = [*self.files, *(run["folder"] for run in self.runs)]
        return self.status == 0 and all(Path(each).exists() for each in made)


def path_of(folder: Path, trial: Trial) -> Path:
    """Return where the result of a run is."""
    return folder / f"{trial.key}.json"


def found(folder: Path, trial: Trial) -> Outcome:
    """Return what there is of a run; one whose result cannot be read was not begun."""
    try:
        told = json.loads(path_of(folder, trial).read_text(encoding="utf-8"))
        kept = {key: told[key] for key in _KEYS}
    except (OSError, ValueError, KeyError, TypeError):
        return Outcome(trial)
    return Outcome(trial, **kept)
