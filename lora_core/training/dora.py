"""DoRA beside a frozen layer: `W' = m * (W + delta_W) / ||W + delta_W||`, the norm and the magnitude m one per row.

Liu et al. 2024, arXiv:2402.09353, in PEFT's orientation. The norm follows `delta_W` and takes no gradient (section 4.3
of the paper, and PEFT). It comes from the factors: `||W_i||^2 + 2 s <B_i, W_i A^T> + s^2 B_i A A^T B_i^T`, so that
neither `W + delta_W` nor its gradient is ever formed; of W only `A W^T`, (rank, out), is computed per forward pass.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WeightReader:
    """Says how the weight of a frozen layer is read. This one reads plain parameters."""

    def times(self, module: nn.Module, rows: Tensor) -> Tensor:
        """`rows @ W^T`, (n, out), of rows (n, columns), W flattened to a matrix; on the rows' device, in their type."""
        return F.linear(rows, cast(Tensor, module.weight).detach().flatten(1).to(rows))

    def norms(self, module: nn.Module) -> Tensor:
        """Return the norms of the rows of W, (out,) in fp32, wherever the weight lies."""
        return cast(Tensor, module.weight).detach().flatten(1).float().norm(dim=1)

    def bias(self, module: nn.Module, like: Tensor) -> Tensor | None:
        return None if module.bias is None else cast(Tensor, module.bias).detach().to(like)


class Magnitude:
    """The magnitudes of one layer: `value` (out, 1) is the leaf, `base` (out,) are the norms of W's rows; both fp32."""

    def __init__(self, value: Tensor, base: Tensor, module: nn.Module, frozen: WeightReader):
        self.value, self.base, self.module, self.frozen = value, base, module, frozen

    @torch.no_grad()
    def products(self, lora_A: Tensor, lora_B: Tensor, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`<W_i, delta_W_i>` and `||delta_W_i||^2` of each row, (out,) fp32; W is read as `dtype`."""
        crossed = self.frozen.times(self.module, lora_A.to(dtype)).T.float()
        inner = (lora_B * crossed).sum(1) * scaling
        return inner, ((lora_B @ (lora_A @ lora_A.T)) * lora_B).sum(1) * scaling**2

    def norms(self, lora_A: Tensor, lora_B: Tensor, scaling: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the norms of the rows of `W + delta_W`, (out,)."""
        inner, square = self.products(lora_A, lora_B, scaling, dtype)
        return (self.base.square() + 2 * inner + square).clamp(min=torch.finfo(torch.float32).tiny).sqrt()

    def rescale(self, out: Tensor, norms: Tensor, dimensions: int) -> Tensor:
        """Give the rows their magnitudes in an output with the channels before the last `dimensions`: what the norms
        are off by is added, so that a narrow type rounds that alone."""
        gain = (self.value[:, 0] / norms - 1).to(out.dtype).view(-1, *(1 for _ in range(dimensions)))
        bias = self.frozen.bias(self.module, out)
        bare = out if bias is None else out - bias.view(-1, *(1 for _ in range(dimensions)))
        return torch.addcmul(out, bare, gain)
