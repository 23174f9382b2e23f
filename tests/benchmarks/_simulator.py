"""Simulates steps of data-parallel training: shares of a batch, jitter, one all-reduce, overlap. Seconds and bytes.

Two ways that agree where both apply. `finished` runs a graph of tasks on the cores of one machine, which processes
share when there are more of them than cores: so gloo's processes compute and copy. `Fleet` gives every rank a device of
its own and works on arrays of ranks: so 64 of them are simulated in milliseconds.

An all-reduce is a ring, which sends 2 (N - 1) messages of bytes / N one after another (Patarasu and Yuan, 2009), or
halving and doubling, 2 log2 N messages of which the largest is half of the bytes (Thakur et al., 2005). A message takes
its link's latency and then bytes / bandwidth, and begins when its sender has what it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
GB = 1e9


@dataclass(frozen=True)
class Task:
    """So many seconds of one core, after a pause that follows the last of the tasks `after`, which come earlier. What
    only copies is not slowed down by others beyond its wait for a core."""

    work: float
    after: tuple[int, ...] = ()
    pause: float = 0.0
    copies: bool = False


def finished(tasks: Sequence[Task], cores: int, slowdown: Callable[[int], float] = lambda _: 1.0) -> list[float]:
    """Return when each task ends. Running ones share the cores evenly, none taking more than one; with n of them each
    takes `slowdown(n)` times as long beside that."""
    ends, waits = [0.0] * len(tasks), [len(task.after) for task in tasks]
    followers: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for before in task.after:
            followers[before].append(index)
    coming = [(task.pause, index) for index, task in enumerate(tasks) if not task.after]
    running: dict[int, float] = {}
    now = 0.0
    while coming or running:
        share = min(1.0, cores / max(len(running), 1))
        rates = {index: share / (1.0 if tasks[index].copies else slowdown(len(running))) for index in running}
        next_end = min((now + left / rates[index] for index, left in running.items()), default=np.inf)
        next_begin = min((begin for begin, _ in coming), default=np.inf)
        then = min(next_end, next_begin)
        running = {index: left - (then - now) * rates[index] for index, left in running.items()}
        now = then
        for index in [index for index, left in running.items() if left <= 1e-12]:
            del running[index]
            ends[index] = now
            for follower in followers[index]:
                waits[follower] -= 1
                if not waits[follower]:
                    coming.append((now + tasks[follower].pause, follower))
        running |= {index: tasks[index].work for begin, index in coming if begin <= now}
        coming = [(begin, index) for begin, index in coming if begin > now]
    return ends


@dataclass(frozen=True)
class Host:
    """A machine whose processes send to each other over its loopback: seconds of pause for a message and, beside them,
    for a byte of it, seconds of a core for a byte, and how much slower each of n tasks at once is than one."""

    cores: int
    pause: float
    byte: float
    idle: float = 0.0
    slow: tuple[tuple[int, float], ...] = ((1, 1.0),)

    def slowdown(self, running: int) -> float:
        counts, times = zip(*self.slow, strict=True)
        return float(np.interp(running, counts, times))


@dataclass(frozen=True)
class Step:
    """What one step is: seconds to compute by rank, `update` seconds after the sum, bytes that are summed. `ready` says
    at which parts of the computing an equal part of the bytes has its gradient; one of 1.0 is no overlap."""

    compute: tuple[float, ...]
    update: float
    bytes: float
    ready: tuple[float, ...] = (1.0,)

    @property
    def ranks(self) -> int:
        return len(self.compute)


@dataclass(frozen=True)
class Jitter:
    """How long computing takes beside its usual time: factors that are drawn from, for each rank and step anew."""

    factors: tuple[float, ...] = (1.0,)

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return generator.choice(np.array(self.factors), shape)


def on_host(step: Step, host: Host, jitter: Jitter = Jitter(), steps: int = 20, seed: int = 0) -> float:
    """Return the seconds of one of so many steps that follow each other on one machine."""
    graph = _Graph(host, step.ranks)
    for factors in jitter.draw(np.random.default_rng(seed), (steps, step.ranks)):
        graph.step(step, factors)
    return max(finished(graph.tasks, host.cores, host.slowdown)) / steps


@dataclass
class _Graph:
    """The tasks of steps on one machine. `last` are those that each rank's next ones wait for."""

    host: Host
    ranks: int
    tasks: list[Task] = field(default_factory=list)
    last: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.last = [()] * self.ranks

    def add(self, task: Task) -> int:
        self.tasks.append(task)
        return len(self.tasks) - 1

    def step(self, step: Step, factors: Sequence[float]) -> None:
        sums: list[tuple[int, ...]] = [()] * self.ranks
        before = 0.0
        for part in (*step.ready, 1.0) if step.ready[-1] < 1 else step.ready:
            pieces = [(part - before) * seconds * factor for seconds, factor in zip(step.compute, factors, strict=True)]
            self.last = [(self.add(Task(piece, last)),) for piece, last in zip(pieces, self.last, strict=True)]
            before = part
            if part in step.ready:
                sums = self.ring([(*a, *b) for a, b in zip(self.last, sums, strict=True)], step)
        self.last = [(self.add(Task(step.update, (*a, *b))),) for a, b in zip(self.last, sums, strict=True)]

    def ring(self, after: list[tuple[int, ...]], step: Step) -> list[tuple[int, ...]]:
        """Each message waits for the sender's and the receiver's own one before."""
        size = step.bytes / len(step.ready) / self.ranks
        work, pause = size * self.host.byte, self.host.pause + size * self.host.idle
        for _ in range(2 * (self.ranks - 1)):
            both = [(*after[i], *after[i - 1]) for i in range(self.ranks)]
            after = [(self.add(Task(work, each, pause, copies=True)),) for each in both]
        return after


@dataclass(frozen=True)
class Link:
    """`latency` of a message in seconds, `bandwidth` in bytes a second, one way."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Fleet:
    """Machines with `each` devices of which all send to each other over `inside`, and over `between`, one for each
    machine, to those of the others."""

    each: int
    inside: Link
    between: Link

    def seconds(self, first: Array, second: Array, size: float, at_once: int) -> Array:
        """Return what messages between ranks take when so many ranks of a machine send to other machines at once."""
        near = first // self.each == second // self.each
        far = self.between.latency + size * at_once / self.between.bandwidth
        return np.where(near, self.inside.latency + size / self.inside.bandwidth, far)

    def ring(self, ready: Array, size: float) -> Array:
        """Return when each rank has the sum of `size` bytes, ranks being ready with theirs at those times."""
        ranks = np.arange(len(ready))
        taken = self.seconds(ranks, np.roll(ranks, 1), size / len(ready), at_once=1)
        for _ in range(2 * (len(ready) - 1)):
            ready = np.maximum(ready, np.roll(ready, 1)) + taken
        return ready

    def halving(self, ready: Array, size: float) -> Array:
        """The same by halving and doubling, for a power of two ranks: partners in the same machine first."""
        ranks, sizes = np.arange(len(ready)), []
        while len(ready) >> len(sizes) > 1:
            sizes.append(size / 2 ** (len(sizes) + 1))
        rounds = list(enumerate(sizes))
        for distance, part in (*rounds, *rounds[::-1]):
            partner = ranks ^ (1 << distance)
            taken = self.seconds(ranks, partner, part, at_once=min(self.each, len(ready)))
            ready = np.maximum(ready, ready[partner]) + taken
        return ready

    def way(self, ranks: int, size: float) -> Callable[[Array, float], Array]:
        """Return the quicker of the two, as NCCL chooses by size."""
        ready = np.zeros(ranks)
        if ranks & (ranks - 1) or self.ring(ready, size).max() <= self.halving(ready, size).max():
            return self.ring
        return self.halving


def on_fleet(step: Step, fleet: Fleet, jitter: Jitter = Jitter(), steps: int = 20, seed: int = 0) -> float:
    """Return the seconds of one of so many steps that follow each other, each rank on a device of its own."""
    compute, now, size = np.array(step.compute), np.zeros(step.ranks), step.bytes / len(step.ready)
    summed = fleet.way(step.ranks, size)
    for factors in jitter.draw(np.random.default_rng(seed), (steps, step.ranks)):
        computed = now + compute * factors
        sums = np.zeros(step.ranks)
        for part in step.ready:
            sums = summed(np.maximum(now + compute * factors * part, sums), size)
        now = np.maximum(computed, sums) + step.update
    return float(now.max()) / steps
