"""Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682): an average of the iterates in place of a schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ScheduleFreeAdamW(Optimizer):
    """The parameters are y, where gradients are taken; z steps as AdamW does; `averages` are x, which is to be used.

    8 bytes of state per parameter: `z` and the second moment; the sums of the average are fp64 scalars on the CPU.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float, beta1: float, beta2: float, eps: float):
        super().__init__(groups, {"weight_decay": weight_decay, "beta1": beta1, "beta2": beta2, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self._step(param, group["lr"], group["beta1"], group["beta2"], group["eps"], group["weight_decay"])

    @torch.no_grad()
    def averages(self) -> list[Tensor]:
        """x of every parameter, new tensors: y = (1 - beta1) z + beta1 x."""
        return [
            param.lerp(self.state[param]["z"], 1 - 1 / group["beta1"]) if self.state[param] else param.clone()
            for group in self.param_groups
            for param in group["params"]
        ]

    def _step(self, param: Tensor, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
        state = self.state[param]
        if not state:
            state.update(_first_state(param))
        state["step"] += 1
        share = _share(state, lr)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
        update = second.sqrt().div_(math.sqrt(1 - beta2 ** int(state["step"]))).add_(eps)
        torch.div(param.grad, update, out=update).add_(param, alpha=weight_decay)
        param.lerp_(state["z"], share).add_(update, alpha=lr * (beta1 * (1 - share) - 1))
        state["z"].sub_(update, alpha=lr)


def _first_state(param: Tensor) -> dict[str, Tensor]:
    numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("step", "highest_lr", "weight_sum")}
    return {"z": param.clone(), "exp_avg_sq": torch.zeros_like(param), **numbers}


def _share(state: dict[str, Tensor], lr: float) -> float:
    """The weight of this step in the average: the square of the highest rate so far, over the sum of all."""
    state["highest_lr"].clamp_(min=lr)
    weight = state["highest_lr"].square()
    state["weight_sum"].add_(weight)
    return float(weight / state["weight_sum"]) if weight else 0.0
