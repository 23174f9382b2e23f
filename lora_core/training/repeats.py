"""A network's blocks run as ones of their kind that were tried before: a rehearsal of twenty equal blocks does the work
of one.

What a block costs is measured on inputs that look like its own, forward and backward, by itself. Afterwards, and for
each further one of its kind, outputs and gradients of the right looks are made, as many bytes are held between the two
passes as it keeps, and the cost is charged.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .branch import Branch
from .looks import Alike, Looks, UnknownError, of_module, of_value, replaced
from .meter import Meter, OperatorWork, Span
from .pairs import Twins


@dataclass(frozen=True)
class BlockPass:
    """Says how a block runs: `around(again)` is what its forward does around each of its runs beside computing, and is
    left out inside `there`. `kind` tells blocks apart that look the same and cost another thing."""

    there: Callable[[], AbstractContextManager] = nullcontext
    around: Callable[[bool], AbstractContextManager] = nullcontext
    kind: Any = None


@dataclass(frozen=True)
class Cost:
    """Holds what one block costs in the forward pass and, if a gradient goes through it, in the backward; its outputs,
    and the gradients of the tensors it is called with. `kept` tells of these and of its outputs which ones it holds
    from one pass to the other, `inside` how many bytes beside."""

    outputs: tuple[Looks, ...]
    structure: TreeSpec
    forth: Span
    back: Span | None = None
    gradients: tuple[Looks | None, ...] = ()
    kept: tuple[tuple[bool, ...], tuple[bool, ...]] = ((), ())
    inside: int = 0

    @property
    def work(self) -> OperatorWork:
        return self.forth.work + (self.back.work if self.back is not None else OperatorWork())


class Repeats:
    """`branches` are those that hang on the blocks' layers, `twins` what they share. `costs` has None for blocks that
    are always run."""

    def __init__(self, meter: Meter, branches: Mapping[str, Branch], twins: Twins):
        self.meter, self.twins, self.costs = meter, twins, dict[tuple, Cost | None]()
        self.branches = {branch.module: branch for branch in branches.values()}
        self.anchor = torch.zeros((), device=meter.device, requires_grad=True)  # outputs may learn where no input does

    @contextmanager
    def over(self, ways: Mapping[nn.Module, BlockPass]) -> Iterator[None]:
        """Run those blocks so."""
        before = {block: vars(block).get("forward") for block in ways}
        try:
            for block, way in ways.items():
                block.forward = _Block(self, block, way, block.forward)
            yield
        finally:
            for block, forward in before.items():
                vars(block).pop("forward") if forward is None else vars(block).update(forward=forward)


class _Block(Alike):
    """The forward of a block, run as one of its kind."""

    def __init__(self, repeats: Repeats, block: nn.Module, way: BlockPass, forward: Callable):
        self.repeats, self.block, self.way, self.forward, self.kind = repeats, block, way, forward, way.kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cost, given = None, []
        try:
            replaced((args, kwargs), lambda tensor: given.append(tensor) or tensor)
            if len(set(map(id, given))) == len(given):
                cost = self._cost(args, kwargs)
        except UnknownError:
            pass
        if cost is None:
            return self.forward(*args, **kwargs)
        anchor = None if cost.back is None else self.repeats.anchor
        made = _Charged.apply(cost, self.repeats, self.way.around, anchor, *given)
        return tree_unflatten(list(made), cost.structure)

    def _cost(self, args: tuple, kwargs: dict) -> Cost | None:
        kind = self._kind()
        if kind is None:
            return None
        costs, key = self.repeats.costs, (kind, of_value([args, kwargs]), torch.is_grad_enabled())
        if key not in costs:
            cost, left = self._tried(args, kwargs)
            if left:  # it made what is there from now on
                work = cost.work
                cost, left = self._tried(args, kwargs)
                self.repeats.meter.add(work - cost.work)
            costs[key] = cost if cost.outputs and not left and self._kind() == kind else None
        return costs[key]

    def _tried(self, args: tuple, kwargs: dict) -> tuple[Cost, int]:
        hooks = saved_tensors_hooks(Tensor.detach, _as_it_is)  # not those of checkpointing that this is inside of
        with self.repeats.meter.aside(), self.way.there(), hooks:
            return self._measured(args, kwargs)

    def _kind(self) -> tuple | None:
        looks = of_module(self.block, self.repeats.branches)
        return looks and (self.way.kind, looks)

    def _measured(self, args: tuple, kwargs: dict) -> tuple[Cost, int]:
        """Its cost, without outputs for a block that gives back, or changes, what it is called with; and the bytes it
        leaves."""
        meter, inputs = self.repeats.meter, list[_Given]()
        start = meter.held
        args, kwargs = replaced((args, kwargs), lambda tensor: self._apart(tensor, inputs))
        given = [each.apart for each in inputs]
        with meter.aside() as forth:
            leaves, structure = tree_flatten(self.forward(*args, **kwargs))
        if not _are_new(leaves, given) or any(each.is_changed() for each in inputs):
            del args, kwargs, given, leaves
            inputs.clear()
            return Cost((), structure, forth), meter.held - start
        outputs, seed = tuple(map(Looks.of, leaves)), _seed(meter, leaves)
        places = [meter.place(tensor) if each.fresh else 0 for each, tensor in zip(inputs, given, strict=True)]
        makes = [meter.place(leaf) for leaf in leaves]
        shared = [weakref.ref(each.apart.untyped_storage()) for each in inputs if each.fresh and each.grads is None]
        for each in inputs:
            del each.apart
        del args, kwargs, given, leaves
        held = {place: meter.held_at(place) for place in (*places, *makes)}
        inside = meter.held - start - sum(held.values()) - (0 if seed is None else seed.nbytes)
        if seed is None:
            return Cost(outputs, structure, forth), inside
        shared, one = [ref() for ref in shared], torch.ones_like(seed)  # which other blocks would hold, too
        with self.repeats.twins.lent() as lend, meter.aside() as back:
            cast(Any, seed.grad_fn).lend = lend
            seed.backward(one)
        gradients = tuple(Looks.of(each.grads.pop()) if each.grads else None for each in inputs)
        del seed, one, shared
        kept = tuple(not place or held[place] > 0 for place in places), tuple(held[place] > 0 for place in makes)
        cost = Cost(outputs, structure, forth, back=back, gradients=gradients, kept=kept, inside=inside)
        return cost, meter.held - start

    def _apart(self, tensor: Tensor, inputs: list[_Given]) -> Tensor:
        """Instead of an input one that looks like it, or, of whole numbers, which may decide, itself."""
        if not tensor.is_floating_point():
            inputs.append(_Given(tensor.detach(), False))
        elif tensor.requires_grad and torch.is_grad_enabled():
            grads: list[Tensor] = []
            inputs.append(_Given(_Input.apply(self.repeats.anchor, Looks.of(tensor), grads), True, grads))
        else:
            inputs.append(_Given(Looks.of(tensor).made(), True))
        return inputs[-1].apart


class _Given:
    """Stands for an input, made for it alone if `fresh`; `grads` holds the gradient of one that learns until the
    block's backward pass is over."""

    def __init__(self, apart: Tensor, fresh: bool, grads: list[Tensor] | None = None):
        self.apart, self.fresh, self.grads, self.version = apart, fresh, grads, apart._version

    def is_changed(self) -> bool:
        return self.apart._version != self.version


class _Input(torch.autograd.Function):
    """Not a leaf: blocks may change their inputs in place."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, looks: Looks, grads: list[Tensor]) -> Tensor:
        ctx.grads = grads
        return looks.made()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.grads.append(grad)
        return None, None, None


class _Seed(torch.autograd.Function):
    """A scalar whose backward makes the gradients of what it was made of, as autograd holds them: alone."""

    @staticmethod
    def forward(ctx: Any, meter: Meter, *tensors: Tensor) -> Tensor:
        ctx.meter, ctx.looks = meter, [Looks.of(tensor) for tensor in tensors]
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        ctx.lend()
        with ctx.meter.uncounted():
            return None, *(looks.made() for looks in ctx.looks)


def _seed(meter: Meter, leaves: list[Tensor]) -> Tensor | None:
    learning = [leaf for leaf in leaves if leaf.requires_grad]
    return _Seed.apply(meter, *learning) if learning else None


class _Charged(torch.autograd.Function):
    """A block that was measured before; from one pass to the other it keeps as much as that one did."""

    @staticmethod
    def forward(
        ctx: Any, cost: Cost, repeats: Repeats, around: Callable, anchor: Tensor | None, *given: Tensor
    ) -> tuple:
        ctx.cost, ctx.repeats, ctx.around, meter = cost, repeats, around, repeats.meter
        ctx.set_materialize_grads(False)
        with around(False), meter.charged(cost.forth):
            made = [looks.made() for looks in cost.outputs]
            if cost.back is not None:
                inside = torch.empty(cost.inside, dtype=torch.uint8, device=meter.device)
                ctx.save_for_backward(*compress(given, cost.kept[0]), *compress(made, cost.kept[1]), inside)
        ctx.mark_non_differentiable(*(new for new, looks in zip(made, cost.outputs, strict=True) if not looks.learns))
        return tuple(made)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.repeats.twins.open()
        with ctx.around(True), ctx.repeats.meter.charged(ctx.cost.back, sum(g.nbytes for g in grads if g is not None)):
            made = [looks and looks.made() for looks in ctx.cost.gradients]
        return None, None, None, None, *made


def _are_new(leaves: list[Any], given: list[Tensor]) -> bool:
    """Whether each is a tensor with all of a memory to itself."""
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return False
    own = [leaf.untyped_storage() for leaf in leaves]
    places = {storage._cdata for storage in own}
    whole = all(storage.nbytes() == leaf.nbytes for storage, leaf in zip(own, leaves, strict=True))
    return whole and len(places) == len(own) and not places & {tensor.untyped_storage()._cdata for tensor in given}


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
