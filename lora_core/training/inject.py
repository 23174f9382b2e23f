"""Attach trainable low-rank paths beside frozen layers, and take them off again without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from ..adapter import TEXT_PREFIX, Adapter
from ..kinds import DoRA
from ..low_rank import LowRank
from ..quiet.directions import Quieting
from ..swap import swapped
from .branch import Branch, copied
from .caps import hold_
from .dora import Magnitude, WeightReader
from .layers import LayersConfig, sizes
from .pairs import Twins, grad_of, leaf_of
from .quieted import Quieted
from .start import Start
from .targets import weight_shape

Key = tuple[str, int]  # of a factor: its layer, and 0 for A, 1 for B or 2 for the magnitudes of DoRA


@dataclass(frozen=True)
class FactorSlice:
    """A piece of the buffers with a learning rate of its own, `rate` times that of its kind: the model's or, `text`,
    the text encoders'. `flat` and the `matrices`, which are views of it, have their gradients. `magnitudes` are those
    of DoRA, which are not to decay."""

    flat: Tensor
    matrices: tuple[Tensor, ...]
    text: bool
    rate: float
    magnitudes: bool = False


class Factors:
    """All trainable pairs of a run in one flat fp32 buffer with one flat gradient: one norm, and one optimiser tensor
    for each learning rate.

    Every branch holds views of the buffers; what a backward pass finds is in the flat gradient at its end. A layer too
    small for its rank gets the rank it can have, at the same scaling. Layers of text encoders, which come last, have
    `text_rank` at the scaling of all. `options` may size layers one by one. They lie on `device`, or else with the
    first layer's weight. Without a generator, as where tensors have no memory, nothing is drawn or filled in.

    Layers that `start` has begin with its correction, at its scaling and at least its rank. Those in `kept` have it
    too, and are attached, silenced and saved, but not trained. DoRA reads the layers' weights through `frozen`. `leaf`
    may make the views of the buffers, at their place and of their shape, in another way.

    Layers in `quiet` are trained in quiet directions: the buffer holds A~ in the place of A, and every branch A = A~ P.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        rank: int,
        alpha: float,
        generator: torch.Generator | None,
        text_rank: int = 0,
        device: torch.device | None = None,
        options: LayersConfig | None = None,
        start: Start | None = None,
        kept: Mapping[str, nn.Module] | None = None,
        frozen: WeightReader | None = None,
        leaf: Callable[[Tensor, Tensor, int, tuple[int, int]], Tensor] | None = None,
        quiet: Mapping[str, Quieting] | None = None,
    ):
        self.options, self.frozen = options or LayersConfig(), frozen or WeightReader()
        given, doras = (start.layers, start.doras) if start else ({}, {})
        wanted = sizes(layers, rank, alpha, text_rank, self.options, start)
        shapes = {
            name: _shapes(module, wanted[name].rank, given.get(name), self.options.dora or name in doras)
            for name, module in layers.items()
        }
        size = sum(prod(shape) for own in shapes.values() for shape in own)
        self.flat = torch.zeros(size, device=device or cast(Tensor, next(iter(layers.values())).weight).device)
        self.flat.grad = torch.zeros_like(self.flat)
        ratios = (1, self.options.lora_plus_ratio, 1)
        rates = {(name, i): wanted[name].rate * ratios[i] for name, own in shapes.items() for i in range(len(own))}
        places = {key: shapes[key[0]][key[1]] for key in rates}
        self.matrices, self.parts = _laid_out(self.flat, places, rates, leaf or leaf_of)
        self.quieted = Quieted(self.flat, self.matrices, quiet) if quiet else None
        used, leaves = (self.quieted.shown, self.quieted.leaves) if self.quieted else (self.flat, self.matrices)
        self.twins, self.keep = Twins(used), None
        self.branches: dict[str, Branch] = {}
        for name, module in layers.items():
            own, (lora_A, lora_B) = wanted[name], (leaves[name, 0], leaves[name, 1])
            alpha = own.alpha * len(lora_A) / own.alpha_rank
            self.branches[name] = Branch(
                lora_A, lora_B, alpha, module, twins=self.twins, fresh=self.quieted and self.quieted.refresh
            )
            if generator is not None:
                self._begin(name, given.get(name), generator)
        self._magnify({name: leaves[name, 2] for name in layers if (name, 2) in leaves}, doras)
        self.trained = dict(self.branches)
        for name, module in (kept or {}).items():
            self.branches[name] = self._untrained(module, given[name], doras.get(name))

    def _untrained(self, module: nn.Module, given: LowRank, dora: DoRA | None) -> Branch:
        lora_A, lora_B = (copied(factor).to(self.flat.device) for factor in (given.lora_A, given.lora_B))
        branch = Branch(lora_A, lora_B, given.alpha, module)
        if dora is not None:
            value = torch.zeros(len(lora_B), 1, device=self.flat.device)
            value.copy_(self._magnitudes(branch, value, dora))
        return branch

    @torch.no_grad()
    def _begin(self, name: str, given: LowRank | None, generator: torch.Generator) -> None:
        """A drawn and B zero, so that nothing changes; or what is given, and the ranks beyond it like that."""
        lora_A, lora_B = self.matrices[name, 0], self.matrices[name, 1]
        lora_A.copy_(_kaiming(lora_A.shape, generator))
        if given is not None:
            lora_A[: given.rank] = self.quieted.trained(name, given.lora_A) if self.quieted else given.lora_A
            lora_B[:, : given.rank] = given.lora_B

    @torch.no_grad()
    def _magnify(self, values: Mapping[str, Tensor], given: Mapping[str, DoRA]) -> None:
        """Make the layers that have magnitudes DoRA; all are worked out before one is written, as the factors are
        brought up to date after that."""
        found = {name: self._magnitudes(self.branches[name], value, given.get(name)) for name, value in values.items()}
        for name, magnitudes in found.items():
            self.matrices[name, 2].copy_(magnitudes)

    @torch.no_grad()
    def _magnitudes(self, branch: Branch, value: Tensor, given: DoRA | None) -> Tensor:
        """Make a branch DoRA on that leaf, and return what is to be in it: the magnitudes of a file, or those that
        change nothing."""
        base = self.frozen.norms(branch.module).to(value.device)
        branch.magnitude = Magnitude(value, base, branch.module, self.frozen)
        norms = branch.magnitude.norms(branch.lora_A, branch.lora_B, branch.scaling)
        if given is not None:
            told = given.magnitude.to(norms)
            norms = torch.where(
                told.isnan(), norms, told * norms / base.clamp(min=1e-30) if given.norm_of == "base" else told
            )
        return norms[:, None]

    def refresh(self) -> None:
        """Bring what passes use up to date with the buffer, which they otherwise do themselves."""
        if self.quieted:
            self.quieted.refresh()

    def carry_back(self) -> None:
        """Turn the gradient of what passes use, as they have left it in the flat gradient, into that of the buffer:
        once, when all passes of a step are done."""
        if self.quieted:
            self.quieted.carry_back()

    def text_gradient(self) -> Tensor:
        """The end of the flat gradient that is of text encoders; empty when there are none."""
        return grad_of(self.flat)[sum(len(part.flat) for part in self.parts if not part.text) :]

    def forget_gradient(self) -> None:
        """Drop all gradients, also what a backward pass that was cut off has found."""
        self.twins.forget()
        grad_of(self.flat).zero_()

    def chances(self, generator: torch.Generator) -> Tensor | None:
        """Draw which ranks and whole layers are left out, as the options say: what passes through them is multiplied by
        it in `keeping`, and those that stay are scaled up so that the mean is as without. On the CPU; None, and nothing
        drawn, when nothing is to be left out."""
        if not self.options.drops:
            return None
        ranks = [branch.lora_A.shape[0] for branch in self.trained.values()]
        keep = _kept(self.options.rank_dropout, sum(ranks), generator)
        return keep * _kept(self.options.layer_dropout, len(ranks), generator).repeat_interleave(torch.tensor(ranks))

    @contextmanager
    def dropped(self, generator: torch.Generator) -> Iterator[None]:
        """Inside, ranks and whole layers are left out by `chances`, the same ones in every pass."""
        keep = self.chances(generator)
        with self.keeping(keep if keep is None else keep.to(self.flat.device)):
            yield

    @contextmanager
    def keeping(self, keep: Tensor | None) -> Iterator[None]:
        """Inside, what passes through the ranks of all trained layers, one after the other, is multiplied by `keep`,
        which lies with the factors; None: by 1."""
        before, self.keep = self.keep, keep
        self._share_out()
        try:
            yield
        finally:
            self.keep = before
            self._share_out()

    def _share_out(self) -> None:
        ranks = [branch.lora_A.shape[0] for branch in self.trained.values()]
        kept = [None] * len(ranks) if self.keep is None else self.keep.split(ranks)
        for branch, own in zip(self.trained.values(), kept, strict=True):
            branch.keep = own

    @torch.no_grad()
    def cap_(self) -> None:
        """Hold every correction to the options' `max_norm` (Frobenius norm), if there is one."""
        if self.options.max_norm:
            matrices = [matrix for part in self.parts for matrix in part.matrices]
            pairs = {branch: (self.matrices[name, 0], self.matrices[name, 1]) for name, branch in self.trained.items()}
            hold_(self.flat, matrices, pairs, self.options.max_norm)

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Inside, the attached model answers as its base does."""
        with swapped((branch, "muted", True) for branch in self.branches.values()):
            yield

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """Inside, the corrections are `strength` times what they are."""
        with swapped((branch, "strength", strength) for branch in self.branches.values()):
            yield

    def low_ranks(self) -> dict[str, LowRank]:
        return {name: branch.low_rank() for name, branch in self.branches.items()}

    def adapter(self) -> Adapter:
        """Detached fp32 copies of all corrections, on the CPU."""
        doras = {name: (dora,) for name, branch in self.branches.items() if (dora := branch.dora())}
        return Adapter({name: layer for name, layer in self.low_ranks().items() if name not in doras}, others=doras)


@contextmanager
def attached(branches: Mapping[str, Branch]) -> Iterator[None]:
    """Run the branches' modules with their low-rank paths; on leaving, the modules are exactly as they were."""
    with ExitStack() as hooks:
        for branch in branches.values():
            hooks.callback(branch.module.register_forward_hook(branch).remove)
        yield


def _shapes(module: nn.Module, rank: int, given: LowRank | None, dora: bool) -> tuple[tuple[int, int], ...]:
    """Return the shapes of A, B and, with DoRA, the magnitudes; the rank is at most what the weight can have, and at
    least the given."""
    out, *inner = weight_shape(module)
    columns = prod(inner)
    rank = max(min(rank, out, columns), given.rank if given else 1)
    return ((rank, columns), (out, rank), (out, 1))[: 3 if dora else 2]


def _laid_out(
    flat: Tensor, shapes: Mapping[Key, tuple[int, int]], rates: Mapping[Key, float], leaf: Callable[..., Tensor]
) -> tuple[dict[Key, Tensor], tuple[FactorSlice, ...]]:
    """Leaves by layer and factor, and the parts they form: one piece for each rate, the model's pieces first, and else
    in the order of the layers."""

    def kind(key: Key) -> tuple[bool, float, bool]:
        return key[0].startswith(TEXT_PREFIX), rates[key], key[1] == 2

    leaves, parts, at, grad = {}, [], 0, grad_of(flat)
    for (text, rate, magnitudes), keys in groupby(sorted(shapes, key=kind), kind):
        start, members = at, list(keys)
        for key in members:
            leaves[key] = leaf(flat, grad, at, shapes[key])
            at += prod(shapes[key])
        part = flat if at - start == len(flat) else flat[start:at]
        part.grad = grad[start:at]
        parts.append(FactorSlice(part, tuple(leaves[key] for key in members), text, rate, magnitudes))
    return leaves, tuple(parts)


def _kept(share: float, count: int, generator: torch.Generator) -> Tensor:
    """Factors of mean 1: zero for that share of them."""
    return (torch.rand(count, generator=generator) >= share).float() / (1 - share)


def _kaiming(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform in +-1/sqrt(columns), as peft and kohya initialise A; drawn on the CPU so that devices agree."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])
