"""Tells who is lost.

Each rank notes how far it is in the store by which the ranks have found each other; one that waits in vain reads there
who did not come, or why another has gone.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

_CURE = (
    "start all ranks again, and the run goes on from where it was saved last; torchrun does that by itself with "
    "--max-restarts 3"
)


class LostError(RuntimeError):
    """Says which rank is lost, on which host, and what its last step was."""


@dataclass
class _Place:
    """Where this process is: the last step that it has finished, how often it has met the others, and, when it leaves
    before the end, why; `lost` when that is another rank."""

    host: str = ""
    step: int = 0
    meetings: int = 0
    said: str = ""
    lost: bool = False

    def note(self) -> None:
        self.host = socket.gethostname()
        _store().set(_key(dist.get_rank()), json.dumps(asdict(self)))


_here = _Place()


def reached(step: int) -> None:
    """Note the last step that this rank has finished, for the others to read."""
    _here.step = step
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):  # which the next meeting tells of
            _here.note()


@contextmanager
def meeting() -> Iterator[None]:
    """Inside, all ranks wait for each other. Raises LostError where that is in vain: for a rank that does not come in
    time, or has ended."""
    begun = time.monotonic()
    try:
        _here.meetings += 1
        _here.note()
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostError(_sentence(error, time.monotonic() - begun)) from error


def leave(error: BaseException) -> None:
    """Note why this rank ends before the others, as far as they can still be told."""
    _here.said, _here.lost = f"{error}" or type(error).__name__, isinstance(error, LostError)
    with suppress(RuntimeError):
        _here.note()


def _sentence(error: RuntimeError, seconds: float) -> str:
    try:
        places = {rank: _place(rank) for rank in range(dist.get_world_size()) if rank != dist.get_rank()}
    except RuntimeError:
        return f"the ranks have lost each other after step {_here.step}: {_first_line(error)}; {_CURE}"
    if told := [place["said"] for place in places.values() if place.get("lost")]:
        return told[0]
    missing = [rank for rank, place in places.items() if place.get("said")]
    missing = missing or [rank for rank, place in places.items() if place.get("meetings", 0) < _here.meetings]
    late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
    gone = f"has not come for {seconds:.0f} s" if late else "has ended"
    named = [_named(rank, places[rank]) for rank in missing or places]
    who = " and ".join(named) if missing else f"one of {', '.join(named)}" if len(named) > 1 else named[0]
    wait = "; if it is only slow, give --timeout more seconds, or else " if late else "; "
    return f"{who} {gone}; this rank has finished step {_here.step}{wait}{_CURE}"


def _named(rank: int, place: Mapping[str, Any]) -> str:
    if not place:
        return f"rank {rank}, which never came,"
    said = f", said: {place['said']}" if place["said"] else ""
    return f"rank {rank} on {place['host']} (last step {place['step']}{said})"


def _place(rank: int) -> dict[str, Any]:
    """How far a rank has noted that it is; nothing when it never came."""
    store, key = _store(), _key(rank)
    return json.loads(store.get(key)) if store.check([key]) else {}


def _key(rank: int) -> str:
    return f"lora_loom/rank {rank}"


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]  # there is no other way


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0]
