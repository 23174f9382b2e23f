"""Lion (Chen et al. 2023, arXiv:2302.06675): the sign of a momentum, 4 bytes of state per parameter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class Lion(Optimizer):
    """Every value moves by the learning rate, whatever its gradient's size. Weight decay is decoupled."""

    def __init__(self, params: ParamsT, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self._step(param, group["lr"], *group["betas"], weight_decay=group["weight_decay"])

    def _step(self, param: Tensor, lr: float, beta1: float, beta2: float, weight_decay: float) -> None:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
        momentum = state["exp_avg"]
        param.mul_(1 - lr * weight_decay).add_(momentum.lerp(param.grad, 1 - beta1).sign_(), alpha=-lr)
        momentum.lerp_(param.grad, 1 - beta2)
