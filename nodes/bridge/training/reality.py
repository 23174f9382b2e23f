"""A run on its device: memory that is emptied before a step is given up, and steps held to what was predicted."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import torch

from ....lora_core.training.reality import JUDGED_AFTER, Expected, Seen, difference
from ....lora_core.training.replayed import Replayed
from ....lora_core.training.steps import StepResult
from ..host.device import counter, is_out_of_memory
from ..host.progress import Progress
from .run_folders import tell


class Reality:
    """Watches the steps of one run; `expected` is None where nothing was predicted. `replayed` are steps whose graphs
    hold memory that can be had back."""

    def __init__(
        self, device: torch.device, expected: Expected | None, progress: Progress, replayed: Replayed | None = None
    ):
        self.device, self.expected, self.progress, self.replayed = device, expected, progress, replayed
        self.memory: Any = getattr(torch, device.type, None)
        self.tells = all(counter(device, name) for name in ("memory_allocated", "max_memory_allocated"))
        self.began, self.held = 0.0, 0
        self.seconds: list[float] = []
        self.peaks: list[float] = []

    def relief(self, error: RuntimeError) -> Callable[[], None] | None:
        """Return what makes room after this error; None for one that is of something else."""
        return self._empty if is_out_of_memory(error) else None

    def _empty(self) -> None:
        if self.replayed:
            self.replayed.give_up("memory ran out in a step")
        comfy.model_management.soft_empty_cache(True)
        note = "out of memory in a step: the cache was emptied and the step is repeated"
        if note not in self.progress.notes:
            tell(self.progress, note)

    def over(self, results: Iterator[StepResult]) -> Iterator[StepResult]:
        """The results of `train`. The first steps are held to the prediction, once; what is done between steps, such as
        validation and previews, is not counted."""
        while True:
            self._begin()
            result = next(results, None)
            if result is None:
                return
            self._end()
            yield result

    def _begin(self) -> None:
        if self._looks() and self.tells:
            self.held = self.memory.memory_allocated(self.device)
            self.memory.reset_peak_memory_stats(self.device)
        self.began = time.perf_counter()

    def _end(self) -> None:
        if not self._looks():
            return
        self.seconds.append(time.perf_counter() - self.began)
        if self.tells:
            self.peaks.append(self.memory.max_memory_allocated(self.device) - self.held)
        if self.expected is not None and not self._looks():
            tell(self.progress, difference(self.expected, self._seen()))

    def _looks(self) -> bool:
        return self.expected is not None and len(self.seconds) < JUDGED_AFTER

    def _seen(self) -> Seen:
        """All steps but the first, which makes what later ones have."""
        used = total = None
        if hasattr(self.memory, "mem_get_info"):
            free, total = self.memory.mem_get_info(self.device)
            used = total - free
        spills = platform.system() == "Windows"
        return Seen(max(self.peaks[1:], default=None), min(self.seconds[1:]), used, total, spills)
