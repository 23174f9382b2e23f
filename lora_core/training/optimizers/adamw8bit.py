"""AdamW with 8-bit moments (Dettmers et al. 2022, arXiv:2110.02861): a quarter of AdamW's state, in plain torch."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

BLOCK = 256
_BLOCKS_AT_ONCE = 1 << 16  # bounds what a step needs in fp32 beside the state: 64 MiB a tensor


class AdamW8bit(Optimizer):
    """AdamW on moments that are kept as (blocks, 256) uint8 codes with one fp32 scale per block.

    A code is a place in a fixed list of 256 values in [-1, 1], finer towards 0 (the paper's dynamic tree quantisation;
    without signs for the second moment). Unlike in the paper a second moment never falls to exactly 0, where a first
    moment that is left would be divided by eps alone. 2.03 bytes of state per parameter.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float, beta1: float, beta2: float, eps: float):
        super().__init__(groups, {"weight_decay": weight_decay, "beta1": beta1, "beta2": beta2, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state.update(_first_state(param))
                state["step"] += 1
                flat, grad = param.view(-1), param.grad.view(-1)
                for start in range(0, len(state["exp_avg"]), _BLOCKS_AT_ONCE):
                    blocks = slice(start, start + _BLOCKS_AT_ONCE)
                    values = slice(start * BLOCK, (start + _BLOCKS_AT_ONCE) * BLOCK)
                    _step(flat[values], grad[values], state, blocks, group)


def codebook(signed: bool) -> Tensor:
    """Return the 256 ascending values of the codes, fp32: 0, 1, and per power of ten a share of evenly spaced ones.

    The magnitudes of the seven powers 1e-6 to 1 hold 1, 2, 4 ... 64 values, twice as many without signs.
    """
    values = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1, (1 if signed else 2) * 2**power + 1, dtype=torch.float64)
        steps = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (power - 6)).tolist()
        values += [*steps, *(-step for step in steps)] if signed else steps
    return torch.tensor(sorted(values), dtype=torch.float32)


def quantize(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(blocks, 256) fp32 to uint8 codes of the nearest value relative to each block's largest, and that as its scale.

    Without signs nothing but a block of zeros comes back as 0.
    """
    scale = values.abs().amax(1)
    relative = values / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(relative, _codes(signed, values.device)[1], out_int32=True)
    return (codes if signed else codes.clamp_(min=1)).to(torch.uint8), scale


def dequantize(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """Return the values that `quantize` kept, (blocks, 256) fp32."""
    return _codes(signed, codes.device)[0][codes.int()] * scale[:, None]


@cache
def _codes(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The codebook, and the borders between its neighbours."""
    values = codebook(signed)
    return values.to(device), ((values[:-1] + values[1:]) / 2).to(device)


def _first_state(param: Tensor) -> dict[str, Tensor]:
    shape = (-(-param.numel() // BLOCK), BLOCK)
    state = {"step": torch.zeros(())}
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        zero = int((codebook(signed) < 0).sum())
        state[name] = torch.full(shape, zero, dtype=torch.uint8, device=param.device)
        state[f"{name}_scale"] = torch.zeros(shape[0], device=param.device)
    return state


def _step(param: Tensor, grad: Tensor, state: dict[str, Tensor], blocks: slice, group: dict) -> None:
    """One chunk; `param` and `grad` are flat and end with the chunk or with the parameter."""
    beta1, beta2, done = group["beta1"], group["beta2"], int(state["step"])
    rows = F.pad(grad, (0, -len(grad) % BLOCK)).view(-1, BLOCK)
    first = _moment(state, "exp_avg", blocks, True).lerp_(rows, 1 - beta1)
    second = _moment(state, "exp_avg_sq", blocks, False).mul_(beta2).addcmul_(rows, rows, value=1 - beta2)
    _keep(state, "exp_avg", blocks, first, True)
    _keep(state, "exp_avg_sq", blocks, second, False)
    denominator = second.sqrt_().div_(math.sqrt(1 - beta2**done)).add_(group["eps"])
    update = first.div_(denominator).view(-1)[: len(param)]
    param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] / (1 - beta1**done))


def _moment(state: dict[str, Tensor], name: str, blocks: slice, signed: bool) -> Tensor:
    return dequantize(state[name][blocks], state[f"{name}_scale"][blocks], signed)


def _keep(state: dict[str, Tensor], name: str, blocks: slice, values: Tensor, signed: bool) -> None:
    state[name][blocks], state[f"{name}_scale"][blocks] = quantize(values, signed)
