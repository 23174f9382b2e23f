"""Steps that are captured once for each kind of batch, and replayed: the device is told of all of a step at once.

A graph is what was captured, on the memory with which it was captured: Python does not run again. So all that differs
between two steps of a kind goes in through buffers, and a step in which anything else may differ is none to capture.
The optimiser stays outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser
from .pairs import grad_of
from .tasks import add_gradient

MOST = 8  # graphs of a run; kinds of batches beyond that are stepped without
FIRST, HELD = 1, 2  # batches of a kind: those before it is captured, and those on which its graph is held to a step
_SPREAD = 4  # times as far from a step as the device itself is when it repeats one

Losses = tuple[Tensor, Tensor | None]


class Graphs(Protocol):
    """Captures work on one device."""

    def run(self, work: Callable[[], None]) -> None:
        """Do the work once as it will be captured, so that what is made only once is made outside of the graph."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what does the work again, on the same memory. Raises RuntimeError where it cannot be captured."""
        ...

    def close(self) -> None:
        """Give the memory of all graphs back; none is used afterwards."""
        ...


@dataclass(frozen=True)
class Ready:
    """Conditions on the device as forwards take them. `tensors` are all that has values, `kind` is all else that the
    forwards depend on, and `rebuilt` makes of such tensors what `denoised` takes in the place of conditions."""

    tensors: Sequence[Tensor]
    kind: Hashable
    rebuilt: Callable[[Sequence[Tensor]], Any]


class ReadyDenoiser(Denoiser, Protocol):
    def ready(self, shape: torch.Size, conditions: list[Any]) -> Ready | None:
        """None where a forward depends on more than a `Ready` can tell."""
        ...


@dataclass(frozen=True)
class _Batch:
    """All that goes into a step: `alone` by name, and conditions; `preserved` is None without preservation."""

    alone: Mapping[str, Tensor]
    conditions: Ready
    preserved: Ready | None

    @property
    def tensors(self) -> list[Tensor]:
        further = self.preserved.tensors if self.preserved else ()
        return [*self.alone.values(), *self.conditions.tensors, *further]

    @property
    def kind(self) -> Hashable:
        looks = tuple((each.shape, each.dtype) for each in self.tensors)
        return tuple(self.alone), self.conditions.kind, self.preserved and self.preserved.kind, looks

    def on(self, buffers: Sequence[Tensor]) -> tuple[dict[str, Tensor], Any, Any]:
        """Return the same made of other tensors; what was preserved is empty without preservation."""
        first, second = len(self.alone), len(self.alone) + len(self.conditions.tensors)
        alone = dict(zip(self.alone, buffers[:first], strict=True))
        preserved = self.preserved.rebuilt(buffers[second:]) if self.preserved else []
        return alone, self.conditions.rebuilt(buffers[first:second]), preserved


class _Graph:
    """The step of one kind of batches: the buffers that go in and come out, and what runs it on them."""

    def __init__(self, graphs: Graphs, batch: _Batch, losses: Losses, step: Callable[..., Losses], factors: Factors):
        self.inputs = [each.clone() for each in batch.tensors]
        self.outputs = [torch.empty_like(each) for each in losses if each is not None]

        def work() -> None:
            """Nothing that is made here outlives it: its memory belongs to the graph."""
            found = step(*batch.on(self.inputs))
            for buffer, each in zip(self.outputs, _there(found), strict=True):
                buffer.copy_(each)

        self.factors = factors
        graphs.run(work)
        factors.twins.outdate()  # or the cast of the factors, done already, would be missing in the graph
        self.run = graphs.capture(work)

    def replay(self, batch: _Batch) -> Losses:
        """Add the gradient of this batch to the flat buffer; the losses are copies."""
        self.factors.refresh()  # as the passes do that are in the graph no more
        torch._foreach_copy_(self.inputs, batch.tensors)  # pyright: ignore[reportPrivateImportUsage]  # no other name
        self.run()
        losses, *change = [each.clone() for each in self.outputs]
        return losses, change[0] if change else None


class Replayed:
    """`add_gradient` by graphs, to the bit where the device repeats itself to the bit.

    Each graph is held to a step without it on the batch that it was made with, and on the next of its kind, when the
    factors have moved: there it shows when it does not take all from its buffers. When one is wrong, or cannot be made,
    all steps from there on go without, and `tell` hears of it, once.
    """

    def __init__(self, graphs: Graphs, tell: Callable[[str], object]):
        self.graphs: Graphs | None = graphs
        self.tell = tell
        self.seen, self.held = Counter[Hashable](), Counter[Hashable]()
        self.made: dict[Hashable, _Graph] = {}

    def __call__(
        self,
        config: TrainConfig,
        factors: Factors,
        denoiser: ReadyDenoiser,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        conditions: list[Any],
        preserved: list[Any],
        places: Tensor | None = None,
        levels: Tensor | None = None,
        share: float = 1.0,
    ) -> Losses:
        given = x0, noise, sigma, conditions, preserved, places, levels, share
        alone = {"x0": x0, "noise": noise, "sigma": sigma, "places": places, "levels": levels, "keep": factors.keep}
        plain = partial(add_gradient, config, factors, denoiser, *given)
        batch = _batch(denoiser, x0.shape, alone, conditions, preserved) if self.graphs else None
        if self.graphs is None or batch is None:
            return plain()
        kind = share, batch.kind
        self.seen[kind] += 1
        if self.held[kind] == HELD:
            return self.made[kind].replay(batch)
        if self.seen[kind] <= FIRST or (kind not in self.made and len(self.made) >= MOST):
            return plain()
        step = partial(_step, config, factors, denoiser, share)
        return self._held(self.graphs, kind, batch, factors, plain, step)

    def give_up(self, why: str) -> None:
        """Go on without graphs."""
        if self.graphs:
            self.close()
            self.tell(f"steps are no longer replayed from a graph: {why}; they are as right without, and slower")

    def close(self) -> None:
        """Give the graphs' memory back."""
        self.made.clear()
        if self.graphs:
            self.graphs.close()
        self.graphs = None

    def _held(
        self, graphs: Graphs, kind: Hashable, batch: _Batch, factors: Factors, plain: Callable[[], Losses],
        step: Callable[..., Losses],
    ) -> Losses:  # fmt: skip
        """The step without a graph, and its graph, made if it is not yet, held to it."""
        grad, why = grad_of(factors.flat), ""
        before, losses = grad.clone(), plain()
        wanted = [grad.clone(), *_there(losses)]
        try:
            graph = self.made.get(kind) or _Graph(graphs, batch, losses, step, factors)
            again = partial(_found, grad, before)
            found = again(partial(graph.replay, batch))
            if _same(found, wanted) or _near(found, wanted, again(plain)):
                self.made[kind] = graph
                self.held[kind] += 1
            else:
                why = "it found another gradient than the step without it"
            graph = None
        except RuntimeError as error:
            factors.twins.forget()
            why = f"it could not be captured ({str(error).strip().partition(chr(10))[0]})"
        grad.copy_(wanted[0])
        if why:
            self.give_up(why)
        return losses


def _step(
    config: TrainConfig, factors: Factors, denoiser: Denoiser, share: float, alone: Mapping[str, Tensor],
    conditions: Any, kept: Any,
) -> Losses:  # fmt: skip
    x0, noise, sigma = (alone[name] for name in ("x0", "noise", "sigma"))
    with factors.keeping(alone.get("keep")):
        rest = alone.get("places"), alone.get("levels"), share
        return add_gradient(config, factors, denoiser, x0, noise, sigma, conditions, kept, *rest)


def _batch(
    denoiser: ReadyDenoiser, shape: torch.Size, alone: Mapping[str, Tensor | None], conditions: list[Any],
    preserved: list[Any],
) -> _Batch | None:  # fmt: skip
    ready = denoiser.ready(shape, conditions)
    kept = denoiser.ready(shape, preserved) if ready and preserved else None
    if ready is None or bool(preserved) != (kept is not None):
        return None
    return _Batch({name: each for name, each in alone.items() if each is not None}, ready, kept)


def _there(losses: Iterable[Tensor | None]) -> list[Tensor]:
    return [each for each in losses if each is not None]


def _found(grad: Tensor, before: Tensor, step: Callable[[], Losses]) -> list[Tensor]:
    """The gradient and the losses of the step, taken from where the gradient was `before`."""
    grad.copy_(before)
    losses = step()
    return [grad.clone(), *_there(losses)]


def _same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """To the bit."""
    pairs = zip(found, wanted, strict=True)
    return all(torch.equal(*(each.flatten().view(torch.uint8) for each in pair)) for pair in pairs)


def _near(found: Sequence[Tensor], wanted: Sequence[Tensor], again: Sequence[Tensor]) -> bool:
    """Whether this is what the device finds, where it does not repeat a step to the bit: `again` is the same step."""
    return all(
        float((one - right).norm()) <= _SPREAD * float((other - right).norm())
        for one, other, right in zip(found, again, wanted, strict=True)
    )
