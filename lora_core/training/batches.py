"""The order in which examples are seen: seeded epochs of same-shape batches, resumable at any step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch


class Batches:
    """Endless batches of example indices. Every epoch sees each example its number of `times` (one for all, or one
    each), in batches of one shape.

    A number with a fraction is rounded up with that probability, else down, anew in every epoch. A batch may be smaller
    than `batch_size` when its bucket runs out. All randomness comes from `generator`.
    """

    def __init__(
        self, shapes: Sequence[Hashable], batch_size: int, times: float | Sequence[float], generator: torch.Generator
    ):
        self.shapes, self.batch_size, self.generator = shapes, batch_size, generator
        self.times = times if isinstance(times, Sequence) else [times] * len(shapes)
        self.queue: list[list[int]] = []

    def next(self) -> list[int]:
        while not self.queue:
            self.queue = self._epoch()
        return self.queue.pop(0)

    def _epoch(self) -> list[list[int]]:
        by_shape: dict[Hashable, list[int]] = {}
        for index in self._shuffled([i for i, times in enumerate(self.times) for _ in range(self._whole(times))]):
            by_shape.setdefault(self.shapes[index], []).append(index)
        batches = [
            members[start : start + self.batch_size]
            for members in by_shape.values()
            for start in range(0, len(members), self.batch_size)
        ]
        return self._shuffled(batches)

    def _whole(self, times: float) -> int:
        below, fraction = int(times), times % 1
        return below + (fraction > 0 and float(torch.rand((), generator=self.generator)) < fraction)

    def _shuffled(self, items: list) -> list:
        return [items[i] for i in torch.randperm(len(items), generator=self.generator).tolist()]
