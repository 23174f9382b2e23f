"""Shows a person how far a run is: on its node, and to every browser, as numbers."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import nan
from pathlib import Path
from typing import Any

import comfy.model_management

from ....lora_core.drawing.plot import Marks, draw_curve, smooth
from ....lora_core.runs.log_reading import LogFigures, rounded
from ....lora_core.runs.past_runs import last_saved
from ....lora_core.training.steps import StepResult
from ..host.broadcast import Broadcast
from ..host.folders import run_id, without_paths
from ..host.progress import Progress

_EVENT = "lora_loom.run"  # that web/js/runs/store.js hears
_WINDOW = 300  # losses, from which the smoothed one is known
_LONGEST = 1000  # characters
_MOST_ENDED = 256
_UNSTARTED = "stopped before the first step; queue again to start"

_running: list[RunProgress] = []
_ended: OrderedDict[str, dict[str, Any]] = OrderedDict()


class RunProgress(Progress):
    """Progress of the run that is made by the node that is executing now. `total` are its steps."""

    def __init__(self, name: str, total: int, notes: Sequence[str] = (), chosen: Mapping[str, str] | None = None):
        self.name, self.total, self.id = name, total, ""
        self.outcome, self.phase, self._last_word = "running", "preparing", ""
        self._folder: Path | None = None
        self._losses: list[float] = []
        self._previewed: int | None = None
        self._marks: Callable[[], Marks] = Marks
        self._rate, self._saved, self._before = nan, 0, 0.0
        self._broadcast = Broadcast(_EVENT, self.told)
        super().__init__(total, notes, chosen)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the run goes on; every browser is told of it, and how it ended."""
        _running.append(self)
        self._broadcast.soon()
        try:
            yield
        except comfy.model_management.InterruptProcessingException:
            self._over("stopped", self._last_word or _UNSTARTED)
            raise
        except BaseException as error:
            self._over("failed", str(error).strip() or type(error).__name__)
            raise
        self._over("finished", self._last_word)

    def at(self, folder: Path, losses: list[float], marks: Callable[[], Marks] = Marks) -> None:
        """The run has its folder, with these losses so far, to which those to come are added, and what `marks` returns
        beside them."""
        self._folder, self._losses, self._marks = folder, losses, marks
        self._saved, figures = last_saved(folder), LogFigures()
        with suppress(OSError):
            figures.look(folder / "log.jsonl")
        self._before = figures.seconds
        self.begin(len(losses))
        self.id = run_id(folder)
        self.enters("preparing the first step")

    def origin(self) -> dict[str, Any]:
        return {"prompt_id": self.prompt_id, "node": self.node_id}

    def enters(self, phase: str) -> None:
        """Note what the run does now, in words."""
        self.phase = phase
        self._broadcast.soon()

    def stamped(self, workflow: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The workflow with a note of where in it, and by which prompt, the run is made."""
        if workflow is None:
            return None
        extra = workflow.get("extra")
        return {**workflow, "extra": {**(extra if isinstance(extra, dict) else {}), "lora_loom": self.origin()}}

    def validation(self) -> list[list[float | None]]:
        """(step, loss) so far."""
        return [[step, rounded(loss)] for step, loss in self._marks().validation]

    def took(self, result: StepResult) -> None:
        """Show a step that was done, as a curve once in a while. Raises ComfyUI's interrupt when the user cancelled."""
        picture, losses = None, self._losses
        if self.picture_due() or result.step == self.total:
            picture = draw_curve(losses, self.total, marks=self._marks())
            tail = losses[-50:]
            left = self.time_left(result.step, self.total)
            self.say(f"step {result.step} of {self.total}, loss {sum(tail) / len(tail):.4f}, {left}")
        self.update(result.step, picture=picture)
        self._rate = result.learning_rate
        self.enters("training")
        comfy.model_management.throw_exception_if_processing_interrupted()

    def saved(self, step: int) -> None:
        self._saved = step

    def previewed(self, step: int) -> None:
        self._previewed = step

    def say(self, text: str) -> None:
        super().say(text)
        if text:
            self.enters(text)

    def end(self, text: str) -> str:
        self._last_word = text
        return super().end(text)

    def told(self) -> dict[str, Any]:
        """Return what every browser is told; numbers and words, no pictures and no paths."""
        step, recent = len(self._losses), self._losses[-_WINDOW:]
        spent, fresh = time.monotonic() - self.started, step - self.done_before
        return {
            "id": self.id or None,
            "name": self.name,
            **self.origin(),
            "state": self.outcome,
            "phase": self.phase,
            "step": step,
            "total": self.total,
            "loss": rounded(smooth(recent)[-1]) if recent else None,
            "learning_rate": rounded(self._rate),
            "seconds": round(self._before + (spent if self.id else 0.0), 1),
            "seconds_left": round(spent / fresh * (self.total - step), 1) if fresh > 0 else None,
            "saved": self._saved or None,
            "previewed": self._previewed,
        }

    def _over(self, outcome: str, sentence: str) -> None:
        self.outcome, self.phase = outcome, without_paths(sentence)[:_LONGEST]
        _running.remove(self)
        if self._folder:
            self._saved = last_saved(self._folder)
            _ended[self.id] = {**self.origin(), "problem": self.phase if outcome == "failed" else ""}
            _ended.move_to_end(self.id)
            while len(_ended) > _MOST_ENDED:
                _ended.popitem(last=False)
        self._broadcast.end()


def running() -> list[RunProgress]:
    """The runs of this server, the one that has no folder yet among them."""
    return list(_running)


def live(run: str) -> RunProgress | None:
    """The run of that id, if it goes on in this server."""
    return next((each for each in running() if each.id == run), None)


def known_of(run: str) -> dict[str, Any]:
    """Return what this server remembers of a run: the prompt and node it was last made by, and why it failed."""
    found = live(run)
    return {**found.origin(), "problem": ""} if found else _ended.get(run, {})
