"""Measures what Python allocates during a call, whatever else goes on in the process."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import TypeVar

_TRIES = 5

T = TypeVar("T")


def peak_of(call: Callable[[], T], limit: float) -> tuple[int, T]:
    """Returns the most bytes that a call held at a time, and what it gave.

    tracemalloc counts what every thread allocates meanwhile, and an old block that grows meanwhile as if all of it were
    new. What the call itself needs it needs each time; so from `limit` on it is made again, and the least peak counts.
    """
    peak, result = _peak(call)
    for _ in range(_TRIES - 1):
        if peak < limit:
            break
        again, result = _peak(call)
        peak = min(peak, again)
    return peak, result


def _peak(call: Callable[[], T]) -> tuple[int, T]:
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()
