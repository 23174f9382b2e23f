"""The trainable low-rank path of one layer.

The frozen layer runs as its owner runs it (any dtype, quantisation or offloading); its output then receives
`scaling * B (A x)` in place. `W + delta_W` is never formed, and the only tensors kept for backward are the layer's own
input (by reference) and `A x`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kinds import DoRA
from ..low_rank import LowRank
from .dora import Magnitude
from .targets import weight_shape


class _AddLowRank(torch.autograd.Function):
    """`out += scaling * (x A^T) B^T`, where `scaling` is one number or one for each rank. Factors are cast to the
    activation dtype, their gradients are fp32.

    In place, unless `out` is a view, as a linear layer with a bias gives of its product: autograd would hold the
    product by copies of its gradient (CopySlices), six of the output's size. The sum then is a new tensor.
    """

    @staticmethod
    def forward(ctx, out: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float | Tensor) -> Tensor:
        hidden = F.linear(x, lora_A.to(x.dtype)).mul_(scaling)
        flat = out.view(-1, out.shape[-1])
        rows, columns = hidden.view(-1, hidden.shape[-1]).to(out.dtype), lora_B.to(out.dtype).T
        if out._is_view():
            out = out.new_empty(out.shape)
            torch.addmm(flat, rows, columns, out=out.view(flat.shape))
        else:
            flat.addmm_(rows, columns)
            ctx.mark_dirty(out)
        ctx.save_for_backward(x, hidden, lora_A, lora_B)
        ctx.scaling = scaling
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
        return LowRank(copied(self.lora_A), copied(self.lora_B), self.alpha, self.kernel)

    @torch.no_grad()
    def dora(self) -> DoRA | None:
        """The same with its magnitudes, as ComfyUI reads them: relative to the norms of W, not of W + delta_W."""
        if self.magnitude is None:
            return None
        norms = self.magnitude.norms(self.lora_A, self.lora_B, self.scaling)
        return DoRA(self.low_rank(), copied(self.magnitude.value[:, 0] * self.magnitude.base / norms), 0, "base")


def copied(factor: Tensor) -> Tensor:
    """Detached, on the CPU in fp32."""
    return factor.detach().to("cpu", torch.float32, copy=True)
