"""The order in which examples are seen: seeded epochs of same-shape batches, resumable at any step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch


class Batches:
    """Endless batches of example indices. Every epoch sees each example `repeats` times, in batches of one shape.

    A batch may be smaller than `batch_size` when its bucket runs out. All randomness comes from `generator`.
    """

    def __init__(self, shapes: Sequence[Hashable], batch_size: int, repeats: int, generator: torch.Generator):
        self.shapes, self.batch_size, self.repeats, self.generator = shapes, batch_size, repeats, generator
        self.queue: list[list[int]] = []

    def next(self) -> list[int]:
        if not self.queue:
            self.queue = self._epoch()
        return self.queue.pop(0)

    def _epoch(self) -> list[list[int]]:
        by_shape: dict[Hashable, list[int]] = {}
        for index in self._shuffled([i for i in range(len(self.shapes)) for _ in range(self.repeats)]):
            by_shape.setdefault(self.shapes[index], []).append(index)
        batches = [
            members[start : start + self.batch_size]
            for members in by_shape.values()
            for start in range(0, len(members), self.batch_size)
        ]
        return self._shuffled(batches)

    def _shuffled(self, items: list) -> list:
        return [items[i] for i in torch.randperm(len(items), generator=self.generator).tolist()]
