"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) at a given rate, as LoRA is trained with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..stacks import Stacks
from .matrices import OnMatrices

_LEAST = 1e-15  # of a mean square


class Adafactor(OnMatrices):
    """Adam without momentum, whose second moment is kept as the means of a matrix' rows and columns.

    The numbers are those of torch.optim.Adafactor with eps (1e-15, 1), which keeps the plain rate for every matrix that
    is not large: torch scales it by the size of the matrix, which for a B that starts at 0 would stop it. Of its cap at
    1 / sqrt(step) a rate below 1e-3 never hears. The matrices of one shape are taken together, and nothing is read back
    from the device. Weight decay is decoupled. 4 bytes of state per row and per column.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float):
        super().__init__(groups, {"weight_decay": weight_decay})

    def _moves(self, group: dict[str, Any], values: Tensor, grad: Tensor, stacks: Stacks) -> list[Tensor]:
        params = group["params"]
        steps = self.kept("step", params, lambda: torch.zeros(len(params)), Tensor.unbind).add_(1)
        done, moved = float(steps[0]), []
        for own, weights, grads in zip(stacks.members.values(), stacks.of(values), stacks.of(grad), strict=True):
            rows, columns = (self._mean_squares(name, [params[n] for n in own], grads, dim, done**-0.8)
                             for name, dim in (("row_var", 2), ("col_var", 1)))  # fmt: skip
            moment = (rows @ columns).div_(rows.mean(dim=1, keepdim=True).clamp_(min=_LEAST))
            update = moment.clamp_(min=_LEAST**2).rsqrt_().mul_(grads)
            update.mul_(_size(weights).clamp_(min=1)).div_(_size(update).clamp_(min=1))
            moved.append(update.mul_(-min(group["lr"], done**-0.5)))
        return moved

    def _mean_squares(self, name: str, params: list[Tensor], grads: Tensor, dim: int, share: float) -> Tensor:
        """The running means over a dimension, this step's with that share."""
        found = torch.linalg.vector_norm(grads, dim=dim, keepdim=True).square_().div_(grads.shape[dim])
        return self.kept(name, params, lambda: torch.zeros_like(found), Tensor.unbind).lerp_(found, share)


def _size(stack: Tensor) -> Tensor:
    """The root mean square of each matrix, (matrices, 1, 1)."""
    return torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).div_(stack[0].numel() ** 0.5)
