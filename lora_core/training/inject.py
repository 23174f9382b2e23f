"""Attach trainable low-rank paths beside frozen layers, and take them off again without a trace.

The frozen layer runs as its owner runs it (any dtype, quantisation or offloading); its output then receives
`scaling * B (A x)` in place. `W + delta_W` is never formed, and the only tensors kept for backward are the layer's own
input (by reference) and `A x`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter import TEXT_PREFIX
from ..low_rank import LowRank
from .targets import weight_shape


class _AddLowRank(torch.autograd.Function):
    """`out += scaling * (x A^T) B^T` in place. Factors are cast to the activation dtype, their gradients are fp32."""

    @staticmethod
    def forward(ctx, out: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
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
        grad_B = (hidden.view(-1, hidden.shape[-1]).T @ rows).T
        grad_A = grad_hidden.T @ x.reshape(-1, x.shape[-1])
        grad_x = (grad_hidden @ lora_A.to(rows.dtype)).view(x.shape) if ctx.needs_input_grad[1] else None
        return grad, grad_x, grad_A.to(lora_A.dtype), grad_B.to(lora_B.dtype), None


class Branch:
    """The trainable pair of one layer: `lora_A` (rank, in * prod(kernel)) and `lora_B` (out, rank), fp32 leaves."""

    def __init__(self, lora_A: Tensor, lora_B: Tensor, alpha: float, module: nn.Module):
        self.lora_A, self.lora_B, self.alpha = lora_A, lora_B, alpha
        self.module = module
        self.kernel = weight_shape(module)[2:]
        self.muted = False

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """`out` plus the low-rank path of `x`; `out` may be modified in place and must not be used afterwards."""
        if self.muted:
            return out
        scaling = self.alpha / self.lora_A.shape[0]
        if self.kernel:
            return out + self._convolve(x).to(out.dtype) * scaling
        return _AddLowRank.apply(out if out.is_contiguous() else out.contiguous(), x, self.lora_A, self.lora_B, scaling)

    def _convolve(self, x: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        module, rank = self.module, self.lora_A.shape[0]
        down = self.lora_A.to(x.dtype).view(rank, -1, *self.kernel)
        up = self.lora_B.to(x.dtype).view(-1, rank, *(1 for _ in self.kernel))
        padding = module.padding
        if module.padding_mode != "zeros":
            x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
        return conv(conv(x, down, None, module.stride, padding, module.dilation), up)

    def low_rank(self) -> LowRank:
        """A detached fp32 copy on the CPU."""
        return LowRank(_copy(self.lora_A), _copy(self.lora_B), self.alpha, self.kernel)


class Factors:
    """All trainable pairs of a run in one flat fp32 buffer with one flat gradient: one optimiser tensor, one norm.

    Every branch holds views of the buffers; backward accumulates straight into the flat gradient. A layer too small for
    its rank gets the rank it can have, at the same scaling. Layers of text encoders, which come last, have `text_rank`
    at the scaling alpha / rank of all. `parts` are the buffer's pieces with a learning rate of their own: the model's
    and, when there are any, the text encoders'. They lie on `device`, or else with the first layer's weight.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        rank: int,
        alpha: float,
        generator: torch.Generator,
        text_rank: int = 0,
        device: torch.device | None = None,
    ):
        ranks = {name: text_rank if name.startswith(TEXT_PREFIX) else rank for name in layers}
        shapes = {name: _factor_shapes(module, ranks[name]) for name, module in layers.items()}
        size = sum(prod(a) + prod(b) for a, b in shapes.values())
        device = device or next(iter(layers.values())).weight.device
        self.flat = torch.zeros(size, device=device)
        self.flat.grad = torch.zeros(size, device=device)
        self.parts = _parts(
            self.flat, [sum(map(prod, pair)) for name, pair in shapes.items() if name.startswith(TEXT_PREFIX)]
        )
        self.branches: dict[str, Branch] = {}
        at = 0
        for name, module in layers.items():
            pair = []
            for shape in shapes[name]:
                pair.append(_leaf(self.flat, self.flat.grad, at, shape))
                at += prod(shape)
            with torch.no_grad():
                pair[0].copy_(_kaiming(shapes[name][0], generator))
            self.branches[name] = Branch(*pair, alpha * shapes[name][0][0] / rank, module)

    def matrices(self) -> tuple[list[Tensor], ...]:
        """The factors of each part one by one: views of the buffer that have their gradient."""
        model, text = [], []
        for name, branch in self.branches.items():
            (text if name.startswith(TEXT_PREFIX) else model).extend((branch.lora_A, branch.lora_B))
        return (model, text)[: len(self.parts)]

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
        before = [branch.alpha for branch in self.branches.values()]
        for branch in self.branches.values():
            branch.alpha *= strength
        try:
            yield
        finally:
            for branch, alpha in zip(self.branches.values(), before, strict=True):
                branch.alpha = alpha

    def low_ranks(self) -> dict[str, LowRank]:
        return {name: branch.low_rank() for name, branch in self.branches.items()}


@contextmanager
def attached(branches: Mapping[str, Branch]) -> Iterator[None]:
    """Run the branches' modules with their low-rank paths; on leaving, the modules are exactly as they were."""
    with ExitStack() as hooks:
        for branch in branches.values():
            hook = branch.module.register_forward_hook(lambda _, args, out, b=branch: b.add_to(out, args[0]))
            hooks.callback(hook.remove)
        yield


def _factor_shapes(module: nn.Module, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    out, *inner = weight_shape(module)
    columns = prod(inner)
    rank = min(rank, out, columns)
    return (rank, columns), (out, rank)


def _parts(flat: Tensor, text_sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """The buffer itself, or its two pieces when the last of it belongs to text encoders; each has its gradient."""
    if not text_sizes:
        return (flat,)
    parts, grads = (whole.tensor_split([len(whole) - sum(text_sizes)]) for whole in (flat, flat.grad))
    for part, grad in zip(parts, grads, strict=True):
        part.grad = grad
    return parts


def _leaf(flat: Tensor, grad: Tensor, at: int, shape: tuple[int, int]) -> Tensor:
    leaf = flat[at : at + prod(shape)].view(shape).detach().requires_grad_()
    leaf.grad = grad[at : at + prod(shape)].view(shape)
    return leaf


def _kaiming(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Uniform in +-1/sqrt(columns), as peft and kohya initialise A; drawn on the CPU so that devices agree."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])


def _copy(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", torch.float32, copy=True)
