"""A run as a rank sees it that keeps nothing of it: the first rank does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..adapter import Adapter
from ..training.state import TrainState
from ..training.steps import StepResult
from ..training.trainer import Trouble
from .run_folder import RunFolder


class Unkept(RunFolder):
    """Reads and writes nothing. Its `path` is that of the first rank's folder, which may be on another machine."""

    def keep_workflow(self, workflow: Mapping[str, Any] | None) -> None: ...

    def note(self, event: StepResult | Trouble) -> None: ...

    def save_in_time(self, state: TrainState) -> str:
        return ""

    def try_save(self, state: TrainState, describe: Callable[[], Adapter]) -> str:
        return ""

    def finish(self) -> None: ...
