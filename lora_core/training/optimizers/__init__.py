"""Every optimiser by name: AdamW is torch's, the others have one file each. Weight decay is decoupled in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..config import OptimizerConfig
from .adafactor import Adafactor
from .adamw8bit import AdamW8bit
from .lion import Lion
from .muon import Muon
from .prodigy import Prodigy
from .schedule_free import ScheduleFreeAdamW

_OWN = {"adamw8bit": AdamW8bit, "prodigy": Prodigy, "schedule_free_adamw": ScheduleFreeAdamW}
_FUSED = ("cpu", "cuda", "mps", "xpu")
_ON_MATRICES = ("adafactor", "muon")


def make(config: OptimizerConfig, parts: Sequence[tuple[Tensor, Sequence[Tensor], float]]) -> Optimizer:
    """One parameter group per part: a flat fp32 buffer, the matrices that are views of it, and its peak learning rate.

    Each group keeps its peak as `peak`.
    """
    if config.name in _ON_MATRICES:
        groups = [{"flat": flat, "params": list(own), "lr": peak, "peak": peak} for flat, own, peak in parts]
        if config.name == "muon":
            return Muon(groups, config.betas[0], config.weight_decay)
        return Adafactor(groups, config.weight_decay)
    groups = [{"params": [flat], "lr": peak, "peak": peak} for flat, _, peak in parts]
    numbers: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay, "lr": groups[0]["lr"]}
    if config.name == "lion":
        return Lion(groups, **numbers)
    numbers["eps"] = config.eps or config.method.eps
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=parts[0][0].device.type in _FUSED, **numbers)
    return _OWN[config.name](groups, **numbers)
