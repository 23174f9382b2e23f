"""Tells who is lost.

Each rank notes how far it is in the store by which the ranks have found each other; one that waits in vain reads there
who did not come, or why another has gone. All that is known stands in the store.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_CURE = (
    "start all ranks again, and the run goes on from where it was saved last; torchrun does that by itself with "
    "--max-restarts 3"
)


class LostError(RuntimeError):
    """Says which rank is lost, on which host, and what its last step was."""


def reached(step: int) -> None:
    """Note the last step that this rank has finished, for the others to read."""
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):  # which the next meeting tells of
            _note("place", {"host": socket.gethostname(), "step": step})


@contextmanager
def meeting() -> Iterator[None]:
    """Inside, all ranks wait for each other. Raises LostError where that is in vain: for a rank that does not come in
    time, or has ended."""
    begun, count = time.monotonic(), 0
    try:
        count = _store().add(_key("meetings", dist.get_rank()), 1)
        if count == 1:
            reached(0)
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostError(_sentence(error, count, time.monotonic() - begun)) from error


def leave(error: BaseException) -> None:
    """Note why this rank ends before the others, as far as they can still be told."""
    with suppress(RuntimeError):
        _note("left", {"said": f"{error}" or type(error).__name__, "lost": isinstance(error, LostError)})


@dataclass(frozen=True)
class _Place:
    """How far a rank is: the last step that it has finished, how often it has met the others, and, when it has left
    before the end, why; `lost` when that is another rank."""

    rank: int
    host: str = ""
    step: int = 0
    meetings: int = 0
    said: str = ""
    lost: bool = False

    @classmethod
    def of(cls, rank: int) -> _Place:
        meetings = _store().add(_key("meetings", rank), 0)
        return cls(rank, meetings=meetings, **_noted("place", rank), **_noted("left", rank))

    def __str__(self) -> str:
        if not self.host:
            return f"rank {self.rank}, which has not begun,"
        return f"rank {self.rank} on {self.host} (last step {self.step}{f', said: {self.said}' if self.said else ''})"


def _sentence(error: RuntimeError, count: int, seconds: float) -> str:
    try:
        places = [_Place.of(rank) for rank in range(dist.get_world_size())]
    except RuntimeError:
        return f"the ranks have lost each other: {str(error).strip().partition(chr(10))[0]}; {_CURE}"
    own = places.pop(dist.get_rank())
    if told := [place.said for place in places if place.lost]:
        return told[0]
    missing = [each for each in places if each.said] or [each for each in places if each.meetings < count]
    late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
    gone = f"has not come for {seconds:.0f} s" if late else "has ended"
    wait = "; if it is only slow, give --timeout more seconds, or else " if late else "; "
    who = " and ".join(map(str, missing)) or " or ".join(map(str, places))
    return f"{who} {gone}; this rank has finished step {own.step}{wait}{_CURE}"


def _note(what: str, told: dict[str, object]) -> None:
    _store().set(_key(what, dist.get_rank()), json.dumps(told))


def _noted(what: str, rank: int) -> dict:
    store, key = _store(), _key(what, rank)
    return json.loads(store.get(key)) if store.check([key]) else {}


def _key(what: str, rank: int) -> str:
    return f"lora_loom/{what} {rank}"


def _store() -> Store:
    return dist.distributed_c10d._get_default_store()
