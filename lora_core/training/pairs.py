"""A layer's factors as a pass uses them, and where it leaves their gradients.

The masters are views of one flat fp32 buffer. Cast for every use and with gradients for autograd to add up, a layer
takes twice the operators; so all of them are cast in one go when they have changed, and what a backward pass finds is
added to the fp32 gradients in one go at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import cast

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import Node

Grads = tuple[Tensor | None, Tensor | None]  # of A and B, for autograd to add up; None: they are where they belong


def product(into: Tensor, left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """Write `scaling * left right` over `into`: one operator, whatever is in it."""
    return into.addmm_(left, right, beta=0, alpha=scaling)


def grad_of(leaf: Tensor) -> Tensor:
    """Return the gradient of a flat buffer or of a leaf of it, which have theirs from the beginning."""
    return cast(Tensor, leaf.grad)


def leaf_of(flat: Tensor, grad: Tensor, at: int, shape: tuple[int, int]) -> Tensor:
    """Return a matrix that begins `at` that place of a flat buffer, with its gradient there in the other."""
    leaf = flat[at : at + prod(shape)].view(shape).detach().requires_grad_()
    leaf.grad = grad[at : at + prod(shape)].view(shape)
    return leaf


class Pair:
    """The factors A and B of one layer. The gradients are `scaling * grad_hidden^T rows` and `scaling * grad^T hidden`,
    each of two matrices with a row for each token."""

    def __init__(self, lora_A: Tensor, lora_B: Tensor):
        self.lora_A, self.lora_B = lora_A, lora_B

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return both as they are now, to be cast where a pass computes in another type."""
        return self.lora_A, self.lora_B

    def is_asked(self, leaf: Node | None) -> bool:
        """Return whether the backward pass that runs is to give gradients; `leaf` is autograd's node of A."""
        return leaf is not None

    def collect(self, grad_hidden: Tensor, rows: Tensor, grad: Tensor, hidden: Tensor, scaling: float) -> Grads:
        grad_A, grad_B = grad_hidden.T @ rows, grad.T @ hidden
        return grad_A.mul_(scaling).to(self.lora_A.dtype), grad_B.mul_(scaling).to(self.lora_B.dtype)

    def add(self, grad_A: Tensor, grad_B: Tensor) -> Grads:
        """Collect gradients that are made already."""
        return grad_A.to(self.lora_A.dtype), grad_B.to(self.lora_B.dtype)


class _Leaves(Pair):
    """Leaves of the flat buffer, which have their gradients."""

    def is_asked(self, leaf: Node | None) -> bool:
        """Not where `torch.autograd.grad` asks for other gradients alone."""
        return leaf is not None and torch._C._will_engine_execute_node(leaf)

    def add(self, grad_A: Tensor, grad_B: Tensor) -> Grads:
        grad_of(self.lora_A).add_(grad_A)
        grad_of(self.lora_B).add_(grad_B)
        return None, None


class Master(_Leaves):
    """Leaves of the flat buffer, for passes in its own type."""

    def collect(self, grad_hidden: Tensor, rows: Tensor, grad: Tensor, hidden: Tensor, scaling: float) -> Grads:
        grad_of(self.lora_A).addmm_(grad_hidden.T, rows, alpha=scaling)
        grad_of(self.lora_B).addmm_(grad.T, hidden, alpha=scaling)
        return None, None


class Copied(_Leaves):
    """Leaves of the flat buffer, for passes in the type of a `Twin`. A layer that runs again in one pass adds to its
    fp32 gradients at once, so that no sum is rounded to the other type."""

    def __init__(self, twin: Twin, lora_A: Tensor, lora_B: Tensor):
        super().__init__(lora_A, lora_B)
        self.twin, self.task = twin, -1
        self.copies = twin.part_of(twin.copy, lora_A), twin.part_of(twin.copy, lora_B)
        self.grads = twin.part_of(twin.grad, lora_A), twin.part_of(twin.grad, lora_B)

    def factors(self) -> tuple[Tensor, Tensor]:
        self.twin.refresh()
        return self.copies

    def collect(self, grad_hidden: Tensor, rows: Tensor, grad: Tensor, hidden: Tensor, scaling: float) -> Grads:
        if self.twin.is_first(self):
            grad_A, grad_B = self.grads
            product(grad_A, grad_hidden.T, rows, scaling)
            product(grad_B, grad.T, hidden, scaling)
        else:
            grad_of(self.lora_A).add_(grad_hidden.T @ rows, alpha=scaling)
            grad_of(self.lora_B).add_(grad.T @ hidden, alpha=scaling)
        return None, None


class Twin:
    """A flat buffer of factors in another type, cast again when it has changed, and a gradient of that type.

    The gradient holds what one backward pass finds and is added to the flat one at its end. A pass that fails leaves it
    taken, and until `forget` all gradients go the longer way.
    """

    def __init__(self, flat: Tensor, dtype: torch.dtype):
        with torch.inference_mode(False), torch.no_grad():
            self.flat, self.copy = flat, torch.empty_like(flat, dtype=dtype)
            self.grad = torch.zeros_like(self.copy)
        self.version = self.task = -1

    def part_of(self, buffer: Tensor, leaf: Tensor) -> Tensor:
        """Return what one of the two buffers holds of a leaf."""
        with torch.inference_mode(False), torch.no_grad():
            start = leaf.storage_offset() - self.flat.storage_offset()
            return buffer[start : start + leaf.numel()].view(leaf.shape)

    @torch.no_grad()
    def refresh(self) -> None:
        if self.version != self.flat._version:
            self.copy.copy_(self.flat)
            self.version = self.flat._version

    def is_first(self, pair: Copied) -> bool:
        """Return whether the pair's gradient is still free in the backward pass that runs; from now on it is not."""
        task = self.open()
        if task < 0 or task != self.task or task == pair.task:
            return False
        pair.task = task
        return True

    def open(self) -> int:
        """Let a backward pass that runs have the gradient, if no other has, and return its number; outside, -1."""
        task = torch._C._current_graph_task_id()
        if self.task < 0 <= task:
            self.task = task
            self.grad.zero_()
            Variable._execution_engine.queue_callback(self._add)
        return task

    def _add(self) -> None:
        grad_of(self.flat).add_(self.grad)
        self.forget()

    def forget(self) -> None:
        """Forget the last pass: what the gradient holds of it does not count any more."""
        self.task = -1


class Twins:
    """The twins of one flat buffer, which has its gradient, made for the types that passes come in."""

    def __init__(self, flat: Tensor):
        self.flat = flat
        self.made: dict[torch.dtype, Twin] = {}

    def pair(self, lora_A: Tensor, lora_B: Tensor, dtype: torch.dtype) -> Pair:
        """Return the pair of two leaves for passes in this type."""
        if dtype == self.flat.dtype:
            return Master(lora_A, lora_B)
        if dtype not in self.made:
            self.made[dtype] = Twin(self.flat, dtype)
        return Copied(self.made[dtype], lora_A, lora_B)

    def open(self) -> None:
        """The backward pass that runs uses them, whether or not a layer in it does."""
        for twin in self.made.values():
            twin.open()

    @contextmanager
    def lent(self) -> Iterator[Callable[[], None]]:
        """Inside, a backward pass that calls what is yielded writes into their gradients, and nothing is added."""
        before = {twin: twin.task for twin in self.made.values()}
        try:
            yield self._lend
        finally:
            for twin in self.made.values():
                twin.task = before.get(twin, -1)

    def _lend(self) -> None:
        for twin in self.made.values():
            twin.task = torch._C._current_graph_task_id()

    def outdate(self) -> None:
        """Have the next pass cast the factors, whether they have changed or not."""
        for twin in self.made.values():
            twin.version = -1

    def forget(self) -> None:
        """Drop what a backward pass that failed has found."""
        for twin in self.made.values():
            twin.forget()
