"""Everything that decides how a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..swap import holding
from .batches import Batches
from .health import Health
from .inject import Factors
from .record import Record


@dataclass
class TrainState:
    """Everything that decides how a run goes on. `generator` is its only source of randomness, on the CPU.

    `events` counts steps, drops and returns, and never goes back. `good` is what the run has learnt up to the step to
    which it returns when it diverges. `given` tells of what else the factors mean something with: the digest of quiet
    directions, empty without. `torn` is set while, and when, an update is cut off in its middle: of such a
    state nothing must be kept.
    """

    factors: Factors
    batches: Batches
    generator: torch.Generator
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list[float] = field(default_factory=list)
    ema: Tensor | None = None  # of the factors, from the first step of a run that keeps one
    health: Health = field(default_factory=Health)
    events: int = 0
    good: dict[str, Tensor] | None = None
    torn: bool = False
    given: str = ""
    record: Record = field(default_factory=Record)  # kept by whoever watches the run

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """Undo the random draws and the half gradient of a step that is cut off inside (cancel, out of memory)."""
        draws, queue, done = self.generator.get_state(), list(self.batches.queue), False
        try:
            yield
            done = True
        finally:
            if not done:
                self.generator.set_state(draws)
                self.batches.queue = queue
                self.factors.forget_gradient()

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Inside, the factors are those to look at and to save: their EMA, or the average of a schedule-free optimiser.

        On leaving, the trained ones are back, bit for bit. A run that averages nothing has only one kind.
        """
        average = self._average()
        if average is None:
            yield
            return
        with holding(self.factors.flat, average):
            self.factors.cap_()  # an average of products is not the product of averages
            yield

    def _average(self) -> Tensor | None:
        if averages := getattr(self.optimizer, "averages", None):
            return torch.cat(averages())
        return self.ema

    def follow(self, decay: float) -> None:
        """Take the factors of step `step` into the EMA; with few steps done it looks back less than `decay` says."""
        ema = self.factors.flat.clone() if self.ema is None else self.ema
        self.ema = ema.lerp_(self.factors.flat, 1 - min(decay, (1 + self.step) / (10 + self.step)))
