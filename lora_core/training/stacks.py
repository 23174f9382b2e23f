"""Matrices of one shape side by side, so that an operation on all of them is launched once for each shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Stacks:
    """The matrices that lie one after the other in a flat tensor, by their shapes.

    `members` are, for each shape, the numbers of the matrices that have it.
    """

    def __init__(self, shapes: Sequence[torch.Size]):
        self._shapes = shapes
        self.members: dict[torch.Size, list[int]] = {}
        for number, shape in enumerate(shapes):
            self.members.setdefault(shape, []).append(number)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the matrices in it."""
        pieces = flat.split([shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def of(self, flat: Tensor) -> list[Tensor]:
        """Copies of the matrices in it, for each shape (matrices, rows, columns)."""
        views = self.views(flat)
        return [torch.stack([views[number] for number in own]) for own in self.members.values()]

    def flat(self, stacks: Sequence[Tensor]) -> Tensor:
        """Return a new flat tensor with the matrices of all shapes, which are contiguous."""
        pieces: dict[int, Tensor] = {}
        for own, stack in zip(self.members.values(), stacks, strict=True):
            pieces |= zip(own, stack.flatten(1).unbind(), strict=True)
        return torch.cat([pieces[number] for number in range(len(pieces))])
