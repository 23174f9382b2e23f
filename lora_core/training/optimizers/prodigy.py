"""Prodigy (Mishchenko and Defazio 2023, arXiv:2306.06101): Adam that estimates its own learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FIRST_D = 1e-6


class Prodigy(Optimizer):
    """Adam whose rate is `lr * d`, where d, the distance to the solution, grows from 1e-6 to what the gradients say.

    `lr` is a factor on that, normally 1. As its authors advise for diffusion models: with bias correction, warm-up does
    not enter the estimate, weight decay is decoupled. Each parameter tensor has a d of its own. 16 bytes of state per
    parameter; `d`, its numerator and the step are fp64 scalars on the CPU.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float, beta1: float, beta2: float, eps: float):
        super().__init__(groups, {"weight_decay": weight_decay, "beta1": beta1, "beta2": beta2, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self._step(param, group["lr"], group["beta1"], group["beta2"], group["eps"], group["weight_decay"])

    def _step(self, param: Tensor, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
        state, grad = self.state[param], param.grad
        if not state:
            state.update(_first_state(param))
        d, done, first, second = float(state["d"]), int(state["step"]), state["exp_avg"], state["exp_avg_sq"]
        rate = d * lr * math.sqrt(1 - beta2 ** (done + 1)) / (1 - beta1 ** (done + 1))
        first.mul_(beta1).add_(grad, alpha=d * (1 - beta1))
        second.mul_(beta2).addcmul_(grad, grad, value=d * d * (1 - beta2))
        d = _grown_d(state, param, d, rate, math.sqrt(beta2))
        if d is None:
            return
        denominator = second.sqrt().add_(d * eps)
        param.mul_(1 - weight_decay * rate).addcdiv_(first, denominator, value=-rate)
        state["step"] += 1


def _first_state(param: Tensor) -> dict[str, Tensor]:
    zeros = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq", "s")}
    numbers = {"d": _FIRST_D, "d_numerator": 0.0, "step": 0.0}
    return {**zeros, "start": param.clone(), **{k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}}


def _grown_d(state: dict[str, Tensor], param: Tensor, d: float, rate: float, beta3: float) -> float | None:
    """The estimate after this gradient, kept in `state`; None while every gradient was zero."""
    scale = d / _FIRST_D  # keeps the sums from underflow, cancels in the quotient
    moved = torch.dot(param.grad.flatten(), (state["start"] - param).flatten())
    state["s"].mul_(beta3).add_(param.grad, alpha=scale * d)
    moved, denominator = torch.stack([moved, state["s"].abs().sum()]).tolist()  # the host waits once
    if denominator == 0:
        return None
    state["d_numerator"].mul_(beta3).add_(scale * rate * moved)
    state["d"].fill_(max(d, float(state["d_numerator"]) / denominator))
    return float(state["d"])
