"""Parts of sampling, and which of them the forward that runs is in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


Put = Callable[[bool], None]


class _Moment(threading.local):
    """Holds what is put in place around the forward that runs."""

    def __init__(self) -> None:
        self.puts: tuple[Put, ...] = ()


_NOW = _Moment()


@contextmanager
def during(put: Put) -> Iterator[None]:
    """Inside, what `put(True)` does holds, and after it what `put(False)` does."""
    before, _NOW.puts = _NOW.puts, (*_NOW.puts, put)
    try:
        put(True)
        yield
    finally:
        _NOW.puts = before
        put(False)


def moment() -> tuple[Put, ...]:
    """Return what holds now, for `again`."""
    return _NOW.puts


@contextmanager
def again(puts: tuple[Put, ...]) -> Iterator[None]:
    """As in that moment: for blocks that are computed once more in the backward pass, which may be another thread's."""
    with ExitStack() as undo:
        for put in puts:
            undo.enter_context(during(put))
        yield


def is_on(span: Span, sigma: float, percent_to_sigma: Callable[[float], float]) -> bool:
    """From `start` on, up to but not with `end`, so that of two rows that meet one is on at any time."""
    start, end = span
    return (start <= 0 or sigma <= percent_to_sigma(start)) and (end >= 1 or sigma > percent_to_sigma(end))
