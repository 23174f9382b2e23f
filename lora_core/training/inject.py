"""Attach trainable low-rank paths beside frozen layers, and take them off again without a trace.

The frozen layer runs as its owner runs it (any dtype, quantisation or offloading); its output then receives
`scaling * B (A x)` in place. `W + delta_W` is never formed, and the only tensors kept for backward are the layer's own
input (by reference) and `A x`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter import TEXT_PREFIX, Adapter
from ..kinds import DoRA
from ..low_rank import LowRank
from .dora import Frozen, Magnitude
from .layers import LayersConfig, sizes
from .start import Start
from .targets import weight_shape

Key = tuple[str, int]  # of a factor: its layer, and 0 for A, 1 for B or 2 for the magnitudes of DoRA


class _AddLowRank(torch.autograd.Function):
    """`out += scaling * (x A^T) B^T` in place, where `scaling` is one number or one for each rank. Factors are cast to
    the activation dtype, their gradients are fp32."""

    @staticmethod
    def forward(ctx, out: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float | Tensor) -> Tensor:
        hidden = F.linear(x, lora_A.to(x.dtype)).mul_(scaling)
        flat = out.view(-1, out.shape[-1])
        flat.addmm_(hidden.view(-1, hidden.shape[-1]).to(out.dtype), lora_B.to(out.dtype).T)
        ctx.save_for_backward(x, hidden, lora_A, lora_B)
        ctx.scaling = scaling
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, lora_A, lora_B = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1]).to(hidden.dtype)
        grad_hidden = (rows @ lora_B.to(rows.dtype)).mul_(ctx.scaling)
        grad_x = (grad_hidden @ lora_A.to(rows.dtype)).view(x.shape) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[2]:
            return grad, grad_x, None, None, None
        grad_B = (hidden.view(-1, hidden.shape[-1]).T @ rows).T
        grad_A = grad_hidden.T @ x.reshape(-1, x.shape[-1])
        return grad, grad_x, grad_A.to(lora_A.dtype), grad_B.to(lora_B.dtype), None


class Branch:
    """The trainable pair of one layer: `lora_A` (rank, in * prod(kernel)) and `lora_B` (out, rank), fp32 leaves.

    `keep` (rank,) multiplies what passes through each rank; None: 1. `strength` is that of the whole correction.
    `magnitude` is there for DoRA.
    """

    def __init__(
        self, lora_A: Tensor, lora_B: Tensor, alpha: float, module: nn.Module, magnitude: Magnitude | None = None
    ):
        self.lora_A, self.lora_B, self.alpha = lora_A, lora_B, alpha
        self.module = module
        self.kernel = weight_shape(module)[2:]
        self.muted = False
        self.keep: Tensor | None = None
        self.strength = 1.0
        self.magnitude = magnitude

    @property
    def scaling(self) -> float:
        return self.alpha / self.lora_A.shape[0]

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """`out` plus the low-rank path of `x`; `out` may be modified in place and must not be used afterwards."""
        if self.muted:
            return out
        if self.magnitude is None:
            return self._sum(out, x, self.scaling * self.strength)
        before = None if self.strength == 1 else out.clone()
        norms = self.magnitude.norms(self.lora_A, self.lora_B, self.scaling, x.dtype)
        changed = self.magnitude.rescale(self._sum(out, x, self.scaling), norms, len(self.kernel))
        return changed if before is None else before + self.strength * (changed - before)

    def _sum(self, out: Tensor, x: Tensor, scaling: float) -> Tensor:
        if self.kernel:
            return out + self._convolve(x).to(out.dtype) * scaling
        by_rank = scaling if self.keep is None else scaling * self.keep
        return _AddLowRank.apply(out if out.is_contiguous() else out.contiguous(), x, self.lora_A, self.lora_B, by_rank)

    def _convolve(self, x: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        module, rank = self.module, self.lora_A.shape[0]
        lora_A = self.lora_A if self.keep is None else self.lora_A * self.keep[:, None]
        down = lora_A.to(x.dtype).view(rank, -1, *self.kernel)
        up = self.lora_B.to(x.dtype).view(-1, rank, *(1 for _ in self.kernel))
        padding = module.padding
        if module.padding_mode != "zeros":
            x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
        return conv(conv(x, down, None, module.stride, padding, module.dilation), up)

    def cap_(self, most: float) -> None:
        """Shrink both factors alike until the Frobenius norm of the correction is at most `most`; a smaller one keeps
        every bit. The norm is exact, from the factors' Gram matrices, and is not waited for."""
        shrink = (most / self._low_rank_square().sqrt().clamp(min=most)).sqrt()
        self.lora_A.mul_(shrink)
        self.lora_B.mul_(shrink)

    @torch.no_grad()
    def square(self) -> Tensor:
        """Squared Frobenius norm of the whole correction, a scalar on the device."""
        if self.magnitude is None:
            return self._low_rank_square()
        inner, delta = self.magnitude.products(self.lora_A, self.lora_B, self.scaling, torch.float32)
        base = self.magnitude.base.square()
        gain = self.magnitude.value[:, 0] / (base + 2 * inner + delta).sqrt()
        return ((gain - 1).square() * base + 2 * gain * (gain - 1) * inner + gain.square() * delta).sum().clamp(min=0)

    def _low_rank_square(self) -> Tensor:
        square = ((self.lora_B.T @ self.lora_B) * (self.lora_A @ self.lora_A.T)).sum()
        return square.clamp(min=0) * self.scaling**2

    def low_rank(self) -> LowRank:
        """A detached fp32 copy on the CPU; of DoRA, the update inside."""
        return LowRank(_copy(self.lora_A), _copy(self.lora_B), self.alpha, self.kernel)

    @torch.no_grad()
    def dora(self) -> DoRA | None:
        """The same with its magnitudes, as ComfyUI reads them: relative to the norms of W, not of W + delta_W."""
        if self.magnitude is None:
            return None
        norms = self.magnitude.norms(self.lora_A, self.lora_B, self.scaling)
        return DoRA(self.low_rank(), _copy(self.magnitude.value[:, 0] * self.magnitude.base / norms), 0, "base")


@dataclass(frozen=True)
class Part:
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

    Every branch holds views of the buffers; backward accumulates straight into the flat gradient. A layer too small for
    its rank gets the rank it can have, at the same scaling. Layers of text encoders, which come last, have `text_rank`
    at the scaling of all. `options` may size layers one by one. They lie on `device`, or else with the first layer's
    weight.

    Layers that `start` has begin with its correction, at its scaling and at least its rank. Those in `kept` have it
    too, and are attached, silenced and saved, but not trained. DoRA reads the layers' weights through `frozen`.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        rank: int,
        alpha: float,
        generator: torch.Generator,
        text_rank: int = 0,
        device: torch.device | None = None,
        options: LayersConfig | None = None,
        start: Start | None = None,
        kept: Mapping[str, nn.Module] | None = None,
        frozen: Frozen | None = None,
    ):
        self.options, self.frozen = options or LayersConfig(), frozen or Frozen()
        wanted, given = sizes(layers, rank, alpha, text_rank, self.options, start), start.layers if start else {}
        least = {name: given[name].rank if name in given else 1 for name in layers}
        shapes = {name: _factor_shapes(module, wanted[name].rank, least[name]) for name, module in layers.items()}
        doras = {name for name in layers if self.options.dora or name in (start.doras if start else ())}
        shapes = {name: (*pair, (pair[1][0], 1)) if name in doras else pair for name, pair in shapes.items()}
        size = sum(prod(shape) for own in shapes.values() for shape in own)
        device = device or next(iter(layers.values())).weight.device
        self.flat = torch.zeros(size, device=device)
        self.flat.grad = torch.zeros(size, device=device)
        ratios = (1, self.options.lora_plus_ratio, 1)
        rates = {(name, i): wanted[name].rate * ratios[i] for name, own in shapes.items() for i in range(len(own))}
        leaves, self.parts = _laid_out(self.flat, {key: shapes[key[0]][key[1]] for key in rates}, rates)
        self.branches: dict[str, Branch] = {}
        for name, module in layers.items():
            pair, own = (leaves[name, 0], leaves[name, 1]), wanted[name]
            with torch.no_grad():
                pair[0].copy_(_kaiming(shapes[name][0], generator))
                if name in given:
                    pair[0][: least[name]] = given[name].lora_A
                    pair[1][:, : least[name]] = given[name].lora_B
            self.branches[name] = Branch(*pair, own.alpha * shapes[name][0][0] / own.alpha_rank, module)
            if name in doras:
                self._magnify(self.branches[name], leaves[name, 2], start and start.doras.get(name))
        self.trained = dict(self.branches)
        for name, module in (kept or {}).items():
            pair = (_copy(factor).to(device) for factor in (given[name].lora_A, given[name].lora_B))
            self.branches[name] = branch = Branch(*pair, given[name].alpha, module)
            if name in start.doras:
                self._magnify(branch, torch.zeros(len(branch.lora_B), 1, device=device), start.doras[name])

    @torch.no_grad()
    def _magnify(self, branch: Branch, value: Tensor, given: DoRA | None) -> None:
        """Make a branch DoRA with the magnitudes of a file, or with those that change nothing."""
        base = self.frozen.norms(branch.module).to(value.device)
        branch.magnitude = Magnitude(value, base, branch.module, self.frozen)
        norms = branch.magnitude.norms(branch.lora_A, branch.lora_B, branch.scaling)
        if given is not None:
            told = given.magnitude.to(norms)
            norms = torch.where(
                told.isnan(), norms, told * norms / base.clamp(min=1e-30) if given.norm_of == "base" else told
            )
        value.copy_(norms[:, None])

    def text_gradient(self) -> Tensor:
        """The end of the flat gradient that is of text encoders; empty when there are none."""
        return self.flat.grad[sum(len(part.flat) for part in self.parts if not part.text) :]

    @contextmanager
    def dropped(self, generator: torch.Generator) -> Iterator[None]:
        """Inside, ranks and whole layers are left out as the options say, the same ones in every pass; those that stay
        are scaled up so that the mean is as without. Draws nothing when nothing is to be left out."""
        if not self.options.drops:
            yield
            return
        ranks = [branch.lora_A.shape[0] for branch in self.trained.values()]
        keep = _kept(self.options.rank_dropout, sum(ranks), generator)
        keep *= _kept(self.options.layer_dropout, len(ranks), generator).repeat_interleave(torch.tensor(ranks))
        for branch, own in zip(self.trained.values(), keep.to(self.flat.device).split(ranks), strict=True):
            branch.keep = own
        try:
            yield
        finally:
            for branch in self.trained.values():
                branch.keep = None

    @torch.no_grad()
    def cap_(self) -> None:
        """Hold every correction to the options' `max_norm` (Frobenius norm), if there is one."""
        if self.options.max_norm:
            for branch in self.trained.values():
                branch.cap_(self.options.max_norm)

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Inside, the attached model answers as its base does."""
        for branch in self.branches.values():
            branch.muted = True
        try:
            yield
        finally:
            for branch in self.branches.values():
                branch.muted = False

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """Inside, the corrections are `strength` times what they are."""
        for branch in self.branches.values():
            branch.strength = strength
        try:
            yield
        finally:
            for branch in self.branches.values():
                branch.strength = 1.0

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
            hook = branch.module.register_forward_hook(lambda _, args, out, b=branch: b.add_to(out, args[0]))
            hooks.callback(hook.remove)
        yield


def _factor_shapes(module: nn.Module, rank: int, least: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of A and B; the rank is at most what the weight can have, and at least `least`."""
    out, *inner = weight_shape(module)
    columns = prod(inner)
    rank = max(min(rank, out, columns), least)
    return (rank, columns), (out, rank)


def _laid_out(
    flat: Tensor, shapes: Mapping[Key, tuple[int, int]], rates: Mapping[Key, float]
) -> tuple[dict[Key, Tensor], tuple[Part, ...]]:
    """Leaves by layer and factor, and the parts they form: one piece for each rate, the model's pieces first, and else
    in the order of the layers."""

    def kind(key: Key) -> tuple[bool, float, bool]:
        return key[0].startswith(TEXT_PREFIX), rates[key], key[1] == 2

    leaves, parts, at = {}, [], 0
    for (text, rate, magnitudes), keys in groupby(sorted(shapes, key=kind), kind):
        start, members = at, list(keys)
        for key in members:
            leaves[key] = _leaf(flat, flat.grad, at, shapes[key])
            at += prod(shapes[key])
        part = flat if at - start == len(flat) else flat[start:at]
        part.grad = flat.grad[start:at]
        parts.append(Part(part, tuple(leaves[key] for key in members), text, rate, magnitudes))
    return leaves, tuple(parts)


def _leaf(flat: Tensor, grad: Tensor, at: int, shape: tuple[int, int]) -> Tensor:
    leaf = flat[at : at + prod(shape)].view(shape).detach().requires_grad_()
    leaf.grad = grad[at : at + prod(shape)].view(shape)
    return leaf


def _kept(share: float, count: int, generator: torch.Generator) -> Tensor:
    """Factors of mean 1: zero for that share of them."""
    return (torch.rand(count, generator=generator) >= share).float() / (1 - share)


def _kaiming(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Uniform in +-1/sqrt(columns), as peft and kohya initialise A; drawn on the CPU so that devices agree."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])


def _copy(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", torch.float32, copy=True)
