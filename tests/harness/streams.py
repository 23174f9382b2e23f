"""Streams that order nothing, and a record of what real ones would have ordered.

`Streams` stands for torch.cuda, and with it `Driver` for what pins memory and `Workers` for threads. Tensors are
computed at once, as ever; what is checked is whether a device, on which each stream and each thread of the host goes at
its own pace, would have computed the same. Launches, allocations, uses and frees are logged with the stream and the
thread that they came from. Of two uses of the same memory, one of them a write, the first must happen before the
second: by the order within a stream, by that within a thread, or by a wait. What was freed may be taken again by the
next allocation on its stream, as torch's allocator does without waiting: all use of it must happen before any of what
is allocated then.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_management
import pytest
import tiny
import torch
from lora_loom.nodes.bridge.session import staging
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.calls import encode
from harness.host import COMPUTE, HOST, SIDE, Clock, Driver, Workers, join
from harness.problem import Problem
from harness.session import training_session

_LAUNCHING_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_"}


def _late(earlier: Mapping[str, int], clock: Mapping[str, int]) -> list[str]:
    """Return who has done what the clock does not know of."""
    return [name for name, time in earlier.items() if clock.get(name, 0) < time]


@dataclass
class Memory:
    """Last use of some bytes by each, reads and writes apart; `before` is the use of freed memory they may lie in."""

    pool: str
    start: int
    size: int
    before: Clock = field(default_factory=dict)
    reads: Clock = field(default_factory=dict)
    writes: Clock = field(default_factory=dict)
    written_at: int = 0  # launches of computing that came before the last write

    def meets(self, other: Memory) -> bool:
        return self.start < other.start + other.size and other.start < self.start + self.size


class Stream:
    """One queue of a device. For each thread that launches on it: when it did, and what is done by then."""

    def __init__(self, owner: Streams, name: str) -> None:
        self.owner, self.name = owner, name
        self.launched: dict[str, tuple[list[int], list[Clock]]] = defaultdict(lambda: ([], []))

    def known_to(self, thread: Clock) -> Clock:
        """Return the clock of what is done before anything that a thread launches now, as far as that is sure to have
        been launched."""
        clock = dict(thread)
        for name, (times, clocks) in self.launched.items():
            if at := bisect_right(times, thread.get(name, 0)):
                join(clock, clocks[at - 1])
        return clock

    def note(self, clock: Clock) -> None:
        name, thread = self.owner.thread()
        times, clocks = self.launched[name]
        times.append(thread[name])
        clocks.append(clock)

    def wait_stream(self, other: Stream) -> None:
        with self.owner.waiting(f"{self.name} for {other.name}") as thread:
            if thread is not None:
                clock = self.known_to(thread)
                join(clock, other.known_to(thread))
                self.note(clock)

    def synchronize(self) -> None:
        with self.owner.waiting(f"{HOST} for {self.name}") as thread:
            if thread is not None:
                join(thread, self.known_to(thread))


class Event:
    """Orders what comes after it once it is recorded, for those who know that it is."""

    def __init__(self, owner: Streams) -> None:
        self.owner, self.clock, self.recorded = owner, {}, {}

    def record(self, stream: Stream) -> None:
        with self.owner.lock:
            name, thread = self.owner.tick()
            self.clock, self.recorded = stream.known_to(thread), {name: thread[name]}

    def synchronize(self) -> None:
        with self.owner.waiting(f"{self.owner.thread()[0]} for event") as thread:
            if thread is not None and not _late(self.recorded, thread):
                join(thread, self.clock)


class Streams:
    """Stands for torch.cuda. The wait named in `ignored` is as if it were not there; `waits` counts all."""

    def __init__(self, ignored: str = "") -> None:
        self.ignored, self.waits = ignored, Counter()
        self.lock, self.local = threading.RLock(), threading.local()
        self.clocks: dict[str, Clock] = defaultdict(dict)
        self.memory: dict[int, list[Memory]] = {}  # of each storage; one, but for buffers that are pinned
        self.freed: dict[str, Clock] = defaultdict(dict)
        self.compute, self.driver = Stream(self, COMPUTE), Driver(self)
        self.work: Future | None = None  # the last that a thread was given
        self.races: list[str] = []  # each two uses of the same memory that nothing orders
        self.beside: list[int] = []  # for each first use of a copy, how many launches it may have been made beside

    # -- what torch.cuda has

    def Stream(self, _device: Any = None) -> Stream:  # noqa: N802
        return Stream(self, SIDE)

    def Event(self, blocking: bool = False) -> Event:  # noqa: N802
        return Event(self)

    def current_stream(self, _device: Any = None) -> Stream:
        return getattr(self.local, "stream", self.compute)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.local.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self.local.stream = before

    # -- threads of the host: those that are no worker's are one, as autograd's thread and the one that waits for it are

    def thread(self) -> tuple[str, Clock]:
        name = getattr(self.local, "name", HOST)
        return name, self.clocks[name]

    def tick(self) -> tuple[str, Clock]:
        name, clock = self.thread()
        clock[name] = clock.get(name, 0) + 1
        return name, clock

    @contextmanager
    def waiting(self, wait: str) -> Iterator[Clock | None]:
        """Yield the clock of the thread that waits or makes a stream wait; None for a wait that is ignored."""
        with self.lock:
            self.waits[wait] += 1
            yield self.tick()[1] if wait != self.ignored else None

    # -- memory

    def used(self, name: str, read: list[Tensor], written: list[Tensor], made: list[Tensor]) -> None:
        """Log an operator: launched on the current stream, or done by the thread where it fills pinned memory."""
        with self.lock:
            stream, (who, known) = self.current_stream(), self.tick()
            for tensor in made:
                self._remember(tensor, stream.name, self.freed[stream.name])
            if name.removeprefix("aten::") in _LAUNCHING_NOTHING:
                return
            if not any(map(self.driver.holds, written)):
                who, known = f"{who} on {stream.name}", stream.known_to(known)
                known[who] = known.get(who, 0) + 1
                stream.note(known)
            for tensor in read:
                self._read(self._of(tensor), f"{name} by {who} reads", who, known)
            for tensor in (*written, *made):
                self._write(self._of(tensor), f"{name} by {who} writes", who, known)

    def _read(self, found: list[Memory], what: str, who: str, known: Clock) -> None:
        for use in (use for memory in found for use in (memory.writes, memory.before)):
            self._check(use, known, what)
        own, computing = found[0], f"{HOST} on {COMPUTE}"
        if who == computing and own.pool == SIDE and not own.reads.get(who):
            self.beside.append(known[who] - 1 - own.written_at)
        own.reads[who] = known.get(who, 0)

    def _write(self, found: list[Memory], what: str, who: str, known: Clock) -> None:
        for use in (use for memory in found for use in (memory.writes, memory.reads, memory.before)):
            self._check(use, known, what)
        found[0].writes[who], found[0].written_at = known.get(who, 0), known.get(f"{HOST} on {COMPUTE}", 0)

    def _check(self, earlier: Mapping[str, int], known: Mapping[str, int], what: str) -> None:
        if late := _late(earlier, known):
            self.races.append(f"{what} memory that {late[0]} may still be using")

    def unpinned(self, start: int, size: int) -> None:
        with self.lock:
            gone, (_, clock) = Memory("", start, size), self.thread()
            for memory in (memory for found in self.memory.values() for memory in found if memory.meets(gone)):
                for use in (memory.reads, memory.writes):
                    self._check(use, clock, "the host unpins")

    def _of(self, tensor: Tensor) -> list[Memory]:
        """The tensor's own memory first, then what it shares bytes with."""
        found = self.memory.get(tensor.untyped_storage()._cdata)
        if found is None:
            found = self._remember(tensor)
        if not self.driver.holds(tensor):
            return found
        own = Memory("", tensor.data_ptr(), tensor.nbytes)
        shared = [memory for memory in found if memory.meets(own)]
        same = [memory for memory in shared if (memory.start, memory.size) == (own.start, own.size)]
        if not same:
            found.append(own)
        return [*(same or [own]), *shared]

    def _remember(self, tensor: Tensor, pool: str = "", before: Mapping[str, int] | None = None) -> list[Memory]:
        storage = tensor.untyped_storage()
        self.memory[storage._cdata] = found = []
        if not self.driver.holds(tensor):
            found.append(Memory(pool, storage.data_ptr(), storage.nbytes(), dict(before or {})))
        weakref.finalize(storage, self._dropped, storage._cdata, found)
        return found

    def _dropped(self, key: int, found: list[Memory]) -> None:
        with self.lock:
            for memory in found:
                for use in (memory.before, memory.reads, memory.writes) if memory.pool else ():
                    join(self.freed[memory.pool], use)
            if self.memory.get(key) is found:
                del self.memory[key]

    @contextmanager
    def installed(self) -> Iterator[Streams]:
        """Inside, the offload copies on these streams to whatever device there is, and memory is pinned by `driver`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(staging, "streams_of", lambda _device: self)
            patch.setattr(staging, "ThreadPoolExecutor", partial(Workers, self))
            patch.setattr(torch.cuda, "cudart", lambda: self.driver)
            patch.setattr(comfy.model_management, "MAX_PINNED_MEMORY", 2**40)
            yield self

    @contextmanager
    def recorded(self) -> Iterator[Streams]:
        """Inside, what this thread computes is logged, too."""
        with _Recording(self):
            yield self


class _Recording(TorchDispatchMode):
    def __init__(self, owner: Streams) -> None:
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view or func.namespace == "prim":
            return out
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        changed = {each.name for each in func._schema.arguments if each.alias_info and each.alias_info.is_write}
        read = _tensors([value for name, value in given.items() if name not in changed])
        written = _tensors([value for name, value in given.items() if name in changed])
        old = {tensor.untyped_storage()._cdata for tensor in (*read, *written)}
        made = [tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in old]
        self.owner.used(func._schema.name, read, written, made)
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [part for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) for part in staging.parts(leaf)]


def gradients(
    trio: tiny.Loaded, model: Any, share: float, streams: Streams | None = None, steps: int = 2
) -> list[Tensor]:
    """Return the gradients of steps of training a MODEL of the trio's family, a share of its blocks offloaded, on
    streams if given."""
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with ExitStack() as stack:
        if streams is not None:
            stack.enter_context(streams.installed())
        stack.enter_context(torch.inference_mode())
        problem = Problem.of_model(stack.enter_context(training_session(model, True, offload=share)), conditioning)
        if streams is not None:
            stack.enter_context(streams.recorded())
        return [problem.gradient() for _ in range(steps)]
