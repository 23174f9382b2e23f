"""Forward and backward of a layer's low-rank path, in few more operators than there are products in it.

The only tensors kept for backward are the layer's own input (by reference) and `A x`. `scaling` is a factor of the
products themselves; `keep` (rank,) multiplies what passes through each rank, None: 1. A and B come in as leaves, so
that autograd knows of them: what is multiplied, and where their gradients go, is the pair's to say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .pairs import Grads, Pair, product

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # strides, paddings, dilations
_convolution_backward = torch.ops.aten.convolution_backward


class Weights(Protocol):
    """Says where the weight (out, columns) and the bias of a frozen linear layer come from, in the type of `like`.

    The weight of a layer in `held` is kept from its forward to its backward pass; that of others is asked for again.
    """

    held: Collection[nn.Module]

    def of(self, module: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]: ...


class AddLowRank(torch.autograd.Function):
    """`out + scaling * (keep * (x A^T)) B^T`, beside a layer that has run.

    In place, unless `out` is a view, as a linear layer with a bias gives of its product: autograd would hold the
    product by copies of its gradient (CopySlices), six of the output's size. The sum then is a new tensor.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, pair: Pair, scaling: float,
        keep: Tensor | None,
    ) -> Tensor:  # fmt: skip
        down, up = pair.factors()
        rows, flat, wide = _rows(x), _rows(out), up if out.dtype == x.dtype else lora_B
        hidden = _hidden(rows, down, keep)
        factors = hidden.to(out.dtype), wide.to(out.dtype).T
        if out._is_view():
            out = out.new_empty(out.shape)
            torch.addmm(flat, *factors, alpha=scaling, out=_rows(out))
        else:
            flat.addmm_(*factors, alpha=scaling)
            ctx.mark_dirty(out)
        ctx.save_for_backward(rows, hidden, down, up)
        ctx.pair, ctx.scaling, ctx.keep, ctx.shape = pair, scaling, keep, x.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, down, up = ctx.saved_tensors
        grad_hidden, grads = _backward(ctx, 2, _rows(grad).to(hidden.dtype), rows, hidden, up)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = product(torch.empty_like(rows), grad_hidden, down.to(rows.dtype), ctx.scaling).view(ctx.shape)
        return grad, grad_x, *grads, None, None, None


class LinearWithLowRank(torch.autograd.Function):
    """`x W^T + b + scaling * (keep * (x A^T)) B^T`, the layer and its low-rank path as one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_A: Tensor, lora_B: Tensor, pair: Pair, scaling: float, keep: Tensor | None,
        module: nn.Module, weights: Weights,
    ) -> Tensor:  # fmt: skip
        down, up = pair.factors()
        rows, out = _rows(x), x.new_empty(*x.shape[:-1], lora_B.shape[0])
        hidden = _hidden(rows, down, keep)
        flat, kept = linear(module, weights, x, out)
        flat.addmm_(hidden, up.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(rows, hidden, down, up, kept)
        ctx.pair, ctx.scaling, ctx.keep, ctx.shape, ctx.layer = pair, scaling, keep, x.shape, (module, weights)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, down, up, kept = ctx.saved_tensors
        grad = _rows(grad)
        grad_hidden, grads = _backward(ctx, 1, grad, rows, hidden, up)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = times_weight(grad, *ctx.layer, kept=kept)
            grad_x = grad_x.addmm_(grad_hidden, down.to(grad.dtype), alpha=ctx.scaling).view(ctx.shape)
        return grad_x, *grads, None, None, None, None, None


class AddConvolution(torch.autograd.Function):
    """`out + up(scaling * keep * down(x))` beside a convolution that has run: A is a convolution with that `kernel` and
    `geometry` (strides, paddings, dilations), B one at each place. In place, unless `out` is a view."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, pair: Pair, scaling: float,
        keep: Tensor | None, kernel: tuple[int, ...], geometry: Geometry,
    ) -> Tensor:  # fmt: skip
        ctx.pair, ctx.by_rank = pair, scaling if keep is None else scaling * keep.view(-1, *(1 for _ in kernel))
        ctx.kernel, ctx.geometry, factors = kernel, geometry, pair.factors()
        down, up = _kernels(factors, x.dtype, kernel)
        hidden = _times(torch.convolution(x, down, None, *geometry, *_untransposed(kernel)), ctx.by_rank)
        ctx.save_for_backward(x, hidden, *factors)
        added = torch.convolution(hidden, up, None, *_at_each(kernel), *_untransposed(kernel))
        if out._is_view():
            return out + added
        ctx.mark_dirty(out)
        return out.add_(added)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *factors = ctx.saved_tensors
        kernel, trained = ctx.kernel, ctx.pair.is_asked(ctx.next_functions[2][0])
        down, up = _kernels(factors, x.dtype, kernel)
        rest, wanted = _untransposed(kernel), (True, trained, False)
        grad_hidden, grad_B, _ = _convolution_backward(
            grad.to(x.dtype), hidden, up, None, *_at_each(kernel), *rest, wanted
        )
        grad_hidden = _times(grad_hidden, ctx.by_rank)
        wanted = (ctx.needs_input_grad[1], trained, False)
        grad_x, grad_A, _ = _convolution_backward(grad_hidden, x, down, None, *ctx.geometry, *rest, wanted)
        grads = ctx.pair.add(grad_A.flatten(1), grad_B.flatten(1)) if trained else (None, None)
        return grad, grad_x, *grads, None, None, None, None, None


def linear(module: nn.Module, weights: Weights, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Write `x W^T + b` into `out`, and return it with a row for each token, and the weight if it is held."""
    rows, into = _rows(x), _rows(out)
    with weights.of(module, x) as (weight, bias):
        torch.mm(rows, weight.T, out=into) if bias is None else torch.addmm(bias, rows, weight.T, out=into)
        return into, weight if module in weights.held else None


def times_weight(grad: Tensor, module: nn.Module, weights: Weights, kept: Tensor | None) -> Tensor:
    """Return the gradient of a linear layer's input: `grad W`, with the weight that was kept, if it was."""
    if kept is not None:
        return grad @ kept
    with weights.of(module, grad) as (weight, _):
        return grad @ weight


def _kernels(factors: Sequence[Tensor], dtype: torch.dtype, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    down, up = (factor.to(dtype) for factor in factors)
    return down.view(len(down), -1, *kernel), up.view(*up.shape, *(1 for _ in kernel))


def _at_each(kernel: tuple[int, ...]) -> Geometry:
    """The geometry of a convolution that looks at one place."""
    one = tuple(1 for _ in kernel)
    return one, tuple(0 for _ in kernel), one


def _untransposed(kernel: tuple[int, ...]) -> tuple[bool, tuple[int, ...], int]:
    """Return the last arguments of a convolution: that it is not transposed, no output paddings, and one group."""
    return False, tuple(0 for _ in kernel), 1


def _times(x: Tensor, factor: float | Tensor) -> Tensor:
    return x if isinstance(factor, float) and factor == 1 else x.mul_(factor)


def _hidden(rows: Tensor, down: Tensor, keep: Tensor | None) -> Tensor:
    hidden = rows @ down.to(rows.dtype).T
    return hidden if keep is None else hidden.mul_(keep)


def _backward(ctx: Any, at: int, grad: Tensor, rows: Tensor, hidden: Tensor, up: Tensor) -> tuple[Tensor, Grads]:
    """The gradient of `keep * (x A^T)` without the scaling, and those of the factors; A came in `at` that place."""
    grad_hidden = grad @ up.to(grad.dtype)
    if ctx.keep is not None:
        grad_hidden.mul_(ctx.keep)
    if not ctx.pair.is_asked(ctx.next_functions[at][0]):
        return grad_hidden, (None, None)
    return grad_hidden, ctx.pair.collect(grad_hidden, rows, grad, hidden, ctx.scaling)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
