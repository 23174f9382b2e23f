"""A run on its device: memory that is emptied before a step is given up, and steps held to what was predicted."""

from __future__ import annotations

import time
from collections.abc import Callable

import comfy.model_management
import torch

from ...lora_core.training.reality import JUDGED_AFTER, Expected, Seen, difference
from ...lora_core.training.replayed import Replayed
from .device import is_out_of_memory
from .progress import Progress
from .runs import tell


class Reality:
    """Watches the steps of one run; `expected` is None where nothing was predicted. `replayed` are steps whose graphs
    hold memory that can be had back."""

    def __init__(
        self, device: torch.device, expected: Expected | None, progress: Progress, replayed: Replayed | None = None
    ):
        self.device, self.expected, self.progress, self.replayed = device, expected, progress, replayed
        self.memory = getattr(torch, device.type, None)
        self.tells = all(hasattr(self.memory, name) for name in ("memory_allocated", "max_memory_allocated"))
        self.began, self.seconds, self.held = time.perf_counter(), [], 0

    def relief(self, error: RuntimeError) -> Callable[[], None] | None:
        """Return what makes room after this error; None for one that is of something else."""
        return self._empty if is_out_of_memory(error) else None

    def _empty(self) -> None:
        if self.replayed:
            self.replayed.give_up("memory ran out in a step")
        comfy.model_management.soft_empty_cache(True)
        note = "out of memory in a step: what was cached is emptied, and the same step is taken again"
        if note not in self.progress.notes:
            tell(self.progress, note)

    def after(self) -> None:
        """To be called after every step; says once how the first steps differ from the prediction."""
        if self.expected is None or len(self.seconds) >= JUDGED_AFTER:
            return
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        if len(self.seconds) == 1 and self.tells:
            self.held = self.memory.memory_allocated(self.device)
            self.memory.reset_peak_memory_stats(self.device)
        if len(self.seconds) == JUDGED_AFTER:
            tell(self.progress, difference(self.expected, self._seen()))
        self.began = time.perf_counter()

    def _seen(self) -> Seen:
        seconds, held, used, total = min(self.seconds[1:]), None, None, None
        if self.tells:
            held = self.memory.max_memory_allocated(self.device) - self.held
        if hasattr(self.memory, "mem_get_info"):
            free, total = self.memory.mem_get_info(self.device)
            used = total - free
        return Seen(held, seconds, used, total)
