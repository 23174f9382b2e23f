"""The host's side of recorded streams: a driver that pins memory, and threads whose work is logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from harness.streams import Streams

Clock = dict[str, int]  # how far each thread, and each thread's launches on each stream, are known to have come
HOST, THREAD, COMPUTE, SIDE = "host", "thread", "compute", "side"
COMPUTE_AFTER_COPIES, COPIES_AFTER_COMPUTE = "compute for side", "side for compute"
FILL_AFTER_COPIES, COMPUTE_AFTER_QUEUED = "thread for event", "host for work"
UNPIN_AFTER_COPIES, UNPIN_AFTER_THREAD, UNPIN_AFTER_EVENTS = "host for side", "host for thread", "host for event"


def join(clock: Clock, other: Mapping[str, int]) -> None:
    for name, time in other.items():
        clock[name] = max(clock.get(name, 0), time)


class Driver:
    """Pins memory as CUDA's does, but for what `read_only` says cannot be and beyond `room` bytes."""

    def __init__(self, owner: Streams) -> None:
        self.owner, self.room, self.tried, self.refused = owner, 2**40, 0, 0
        self.pinned: dict[int, int] = {}
        self.read_only: Callable[[int], bool] = lambda _address: False

    def cudaHostRegister(self, address: int, size: int, _flags: int) -> int:  # noqa: N802
        self.tried += 1
        if self.read_only(address) or sum(self.pinned.values()) + size > self.room:
            self.refused += 1
            return 1
        self.pinned[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.owner.unpinned(address, self.pinned.pop(address))
        return 0

    def holds(self, tensor: Tensor) -> bool:
        return any(start <= tensor.data_ptr() < start + size for start, size in self.pinned.items())


class Workers(ThreadPoolExecutor):
    """A thread whose work is logged, and which knows what was done before it was given it."""

    def __init__(self, owner: Streams, *choices: Any) -> None:
        super().__init__(*choices)
        self.owner = owner

    def submit(self, work: Callable, /, *args: Any) -> Awaited:
        with self.owner.lock:
            given = dict(self.owner.tick()[1])
        self.owner.work = super().submit(self._done, given, work, *args)
        return Awaited(self.owner, self.owner.work)

    def _done(self, given: Clock, work: Callable, *args: Any) -> Clock:
        self.owner.local.name = THREAD
        with self.owner.lock:
            join(self.owner.clocks[THREAD], given)
        with self.owner.recorded():
            work(*args)
        with self.owner.lock:
            return dict(self.owner.clocks[THREAD])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        with self.owner.waiting(UNPIN_AFTER_THREAD) as thread:
            if thread is not None:
                join(thread, self.owner.clocks[THREAD])


@dataclass(frozen=True)
class Awaited:
    """A future of such a thread."""

    owner: Streams
    future: Future

    def result(self) -> None:
        done = self.future.result()
        with self.owner.waiting(COMPUTE_AFTER_QUEUED) as thread:
            if thread is not None:
                join(thread, done)
