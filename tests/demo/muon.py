"""Muon: momentum whose matrices are made orthogonal before the step (Jordan 2024, kellerjordan.github.io/posts/muon).

torch.optim.Muon does one matrix at a time; here matrices of one shape go through Newton-Schulz together, which is what
makes it pay on one CPU core.
"""

from collections import defaultdict

import torch
from torch import Tensor


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """[n, rows, columns] with all singular values pulled to about 1, by the quintic Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For the matrices inside the blocks; everything else is better off with AdamW."""

    def __init__(self, params: list[Tensor], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for same in self._by_shape(group["params"]).values():
                self._step(same, group["lr"], group["momentum"])

    @staticmethod
    def _by_shape(params: list[Tensor]) -> dict[torch.Size, list[Tensor]]:
        shapes = defaultdict(list)
        for param in params:
            shapes[param.shape].append(param)
        return shapes

    def _step(self, params: list[Tensor], lr: float, momentum: float) -> None:
        rows, columns = params[0].shape
        average = torch.stack([self.state[p].setdefault("average", torch.zeros_like(p)) for p in params])
        gradient = torch.stack([p.grad for p in params])
        average.lerp_(gradient, 1 - momentum)
        updates = orthogonal(gradient.lerp_(average, momentum))
        for param, update, mean in zip(params, updates, average, strict=True):
            self.state[param]["average"] = mean.clone()
            param.add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)
