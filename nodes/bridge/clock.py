"""Parts of sampling, and which of them the forward that runs is in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from ...lora_core.merging.chain import Step

Span = tuple[float, float]  # start and end, as shares of the model's noise schedule, 0 the noisiest
ALWAYS: Span = (0.0, 1.0)


class Timed(NamedTuple):
    """A change of a parameter that is on for a part of sampling."""

    step: Step
    span: Span = ALWAYS


class Clock(threading.local):
    """Knows which spans are off in the forward that runs; threads may run copies of a model at once."""

    def __init__(self) -> None:
        self.off: frozenset[Span] = frozenset()


def is_on(span: Span, sigma: float, percent_to_sigma: Callable[[float], float]) -> bool:
    """From `start` on, up to but not with `end`, so that of two rows that meet one is on at any time."""
    start, end = span
    return (start <= 0 or sigma <= percent_to_sigma(start)) and (end >= 1 or sigma > percent_to_sigma(end))
