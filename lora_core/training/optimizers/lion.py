"""Lion (Chen et al. 2023, arXiv:2302.06675): the sign of a momentum, 4 bytes of state per parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Every value moves by the learning rate, whatever its gradient's size. Weight decay is decoupled."""

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float, beta1: float, beta2: float):
        super().__init__(groups, {"weight_decay": weight_decay, "beta1": beta1, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self._step(param, group["lr"], group["beta1"], group["beta2"], group["weight_decay"])

    def _step(self, param: Tensor, lr: float, beta1: float, beta2: float, weight_decay: float) -> None:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
        momentum = state["exp_avg"]
        param.mul_(1 - lr * weight_decay).add_(momentum.lerp(param.grad, 1 - beta1).sign_(), alpha=-lr)
        momentum.lerp_(param.grad, 1 - beta2)
