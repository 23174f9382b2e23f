"""Parts of sampling and of the picture, and which of them the forward that runs is in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ....lora_core.stack.chain import Step
from ....lora_core.stack.regions import Region

Span = tuple[float, float]  # start and end, as shares of the model's noise schedule, 0 the noisiest
ALWAYS: Span = (0.0, 1.0)


class Timed(NamedTuple):
    """A change of a parameter that is on for a part of sampling, and for all of the picture or a region of it."""

    step: Step
    span: Span = ALWAYS
    region: Region | None = None

    @property
    def when(self) -> When:
        return When(self.span, self.region)


class When(NamedTuple):
    """Says for which forwards a change is on."""

    span: Span
    region: Region | None


class Now(NamedTuple):
    """Says of a forward which spans are off in it, and which region it is for: "" for what masks leave, else the digest
    of one."""

    off: frozenset[Span] = frozenset()
    region: str = ""

    def has(self, when: When) -> bool:
        return when.span not in self.off and (when.region is None or when.region.digest == self.region)


class Clock(threading.local):
    """Knows which forward runs; threads may run copies of a model at once."""

    def __init__(self) -> None:
        self.now = Now()


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


def off_at(spans: Iterable[Span], base_model: Any, t: Tensor) -> frozenset[Span]:
    """Return the spans that are off in a forward of a model (a comfy.model_base.BaseModel), whose `t` is sigma."""
    sigma, to_sigma = float(t.max()), base_model.model_sampling.percent_to_sigma
    return frozenset(span for span in spans if not is_on(span, sigma, to_sigma))


def is_on(span: Span, sigma: float, percent_to_sigma: Callable[[float], float]) -> bool:
    """From `start` on, up to but not with `end`, so that of two rows that meet one is on at any time."""
    start, end = span
    return (start <= 0 or sigma <= percent_to_sigma(start)) and (end >= 1 or sigma > percent_to_sigma(end))
