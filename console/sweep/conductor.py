"""Makes the runs of a sweep, some side by side, and goes on where it was cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from .. import document
from ..ending import Ending
from ..options import Options
from ..result import BAD_INPUT, DONE, FAILED
from ..trials import Swept, Trial, trials
from ..words import Words
from . import told
from .outcome import found, path_of
from .processes import Process

_LOOK = 0.1  # seconds


def sweep(pack: Path, options: Options, words: Words) -> int:
    """Make every run that is not done yet, and tell of all; return the exit status of the process."""
    try:
        document.read(options.workflow)
        swept = [Swept.read(each) for each in options.sweeps]
        planned = trials(_content(options.workflow), options.settings, swept)
        if options.parallel < 1:
            raise ValueError(f"--parallel is {options.parallel}; give how many runs go side by side, 1 or more")
        folder = options.sweep_folder or options.workflow.with_name(f"{options.workflow.stem}-sweep")
        folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        words.error(f"bad input: {error}")
        return BAD_INPUT
    return _Conductor(pack, options, words, folder.resolve(), planned).conduct()


class _Conductor:
    def __init__(self, pack: Path, options: Options, words: Words, folder: Path, planned: Sequence[Trial]) -> None:
        self.pack, self.options, self.words, self.folder, self.planned = pack, options, words, folder, planned
        self.going: dict[int, tuple[Trial, Process]] = {}  # by place
        self.checking: Process | None = None
        self.ending = Ending(self._cancel)

    def conduct(self) -> int:
        self.ending.install()
        waiting = [trial for trial in self.planned if not found(self.folder, trial).done]
        self.words.line(f"{len(self.planned)} runs, {len(self.planned) - len(waiting)} of them done before")
        if waiting and (status := self._checked()):
            return status
        for trial in waiting:
            path_of(self.folder, trial).unlink(missing_ok=True)
        while self.going or (waiting and not self.ending.came):
            for place in range(self.options.parallel):
                if place not in self.going and waiting and not self.ending.came:
                    self._begin(place, waiting.pop(0))
            time.sleep(_LOOK)
            self._look()
        return self._status()

    def _checked(self) -> int:
        """All combinations are looked at before the first run; 0 when nothing is wrong with them."""
        swept = [part for each in self.options.sweeps for part in ("--sweep", each)]
        self.checking = Process(self.pack, [*self._arguments(), "--check", *swept])
        while self.checking.status is None:
            time.sleep(_LOOK)
        return self.ending.status if self.ending.came else self.checking.status

    def _begin(self, place: int, trial: Trial) -> None:
        alone = self.options.parallel == 1
        number = self.planned.index(trial) + 1
        self.words.line(f"run {number} of {len(self.planned)}: {trial}")
        log = None if alone else self.folder / f"{trial.key}.log"
        settings = [part for each in trial.settings for part in ("--set", each)]
        arguments = [*self._arguments(), *settings, "--result", str(path_of(self.folder, trial))]
        self.going[place] = trial, Process(self.pack, arguments, None if alone else place, log)

    def _arguments(self) -> list[str]:
        options = self.options
        settings = [part for each in options.settings for part in ("--set", each)]
        comfyui = ["--comfyui", str(options.comfyui)] if options.comfyui else []
        return [str(options.workflow), *settings, *comfyui, *options.flags]

    def _look(self) -> None:
        for place, (trial, process) in list(self.going.items()):
            if process.status is None:
                continue
            del self.going[place]
            outcome = found(self.folder, trial)
            if outcome.status is None and not self.ending.came:
                self._crashed(trial, process.status)
                outcome = found(self.folder, trial)
            if self.options.parallel > 1 or outcome.problem:
                said = f"{outcome.outcome}{f', {outcome.problem}' if outcome.problem else ''}"
                self.words.line(f"run {self.planned.index(trial) + 1}: {said or 'cancelled'}")
            told.write_table(self.folder, [found(self.folder, each) for each in self.planned])

    def _crashed(self, trial: Trial, status: int) -> None:
        """A process that has left no result has been killed, or its interpreter has."""
        problem = f"the process ended with {status} and said nothing; run it again to go on from its last save"
        told = {"status": FAILED, "outcome": "crashed", "problem": problem, "seconds": 0.0, "files": [], "runs": []}
        path_of(self.folder, trial).write_text(json.dumps(told), encoding="utf-8")

    def _status(self) -> int:
        outcomes = [found(self.folder, trial) for trial in self.planned]
        table = told.write_table(self.folder, outcomes)
        sheet = told.write_sheet(self.folder, outcomes)
        undone = sum(not each.done for each in outcomes)
        status = self.ending.status if self.ending.came else FAILED if undone else DONE
        if self.options.result:
            told.write_result(self.options.result, status, outcomes)
        self.words.clear()
        self.words.result(table)
        for path in (self.folder / "table.csv", *([sheet] if sheet else [])):
            self.words.result(f"written: {path}")
        if shared := told.overwritten(outcomes):
            self.words.line(shared)
        if self.ending.came:
            self.words.error("cancelled: the same command goes on from here")
        elif undone:
            self.words.error(f"failed: {undone} of {len(outcomes)} runs; the same command tries them again")
        return status

    def _cancel(self) -> None:
        for process in (self.checking, *(process for _, process in self.going.values())):
            if process is not None:
                process.cancel()


def _content(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read()
