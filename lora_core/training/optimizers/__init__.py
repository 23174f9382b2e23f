"""Every optimiser by name: torch's own where it has it, else one file each. Weight decay is decoupled in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..config import OptimizerConfig
from .adamw8bit import AdamW8bit
from .lion import Lion
from .prodigy import Prodigy
from .schedule_free import ScheduleFreeAdamW

_OWN = {"adamw8bit": AdamW8bit, "prodigy": Prodigy, "schedule_free_adamw": ScheduleFreeAdamW}
_SINCE = {"Adafactor": "2.5", "Muon": "2.9"}
_FUSED = ("cpu", "cuda", "mps", "xpu")
_ON_MATRICES = ("adafactor", "muon")


def make(config: OptimizerConfig, parts: Sequence[tuple[Tensor, Sequence[Tensor], float]]) -> Optimizer:
    """One parameter group per part: a flat fp32 buffer, the matrices that are views of it, and its peak learning rate.

    Each group keeps its peak as `peak`. Raises ValueError when this torch does not have the optimiser.
    """
    groups = [
        {"params": list(matrices) if config.name in _ON_MATRICES else [flat], "lr": peak, "peak": peak}
        for flat, matrices, peak in parts
    ]
    if config.name == "adafactor":
        return _adafactor(groups, config)
    if config.name == "muon":
        return _muon(groups, config)
    numbers: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay, "lr": groups[0]["lr"]}
    if config.name == "lion":
        return Lion(groups, **numbers)
    numbers["eps"] = config.eps or config.method.eps
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=parts[0][0].device.type in _FUSED, **numbers)
    return _OWN[config.name](groups, **numbers)


def check_torch(config: OptimizerConfig) -> None:
    """Raises ValueError when this torch does not have the optimiser."""
    if config.method.title in _SINCE:
        _from_torch(config.method.title)


def _from_torch(title: str) -> type[Optimizer]:
    found = getattr(torch.optim, title, None)
    if found is None:
        raise ValueError(
            f"{title} needs torch {_SINCE[title]} or later and this is {torch.__version__}; update torch or choose "
            "another optimizer"
        )
    return found


def _adafactor(groups: list[dict], config: OptimizerConfig) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) at a given rate, as LoRA is trained with it.

    torch scales the rate by each matrix's size, which for a B that starts at 0 would stop it; with the floor of that
    size at 1 every matrix has the plain rate. Of torch's cap at 1 / sqrt(step) a rate below 1e-3 never hears.
    """
    return _from_torch("Adafactor")(groups, eps=(1e-15, 1.0), weight_decay=config.weight_decay)


def _muon(groups: list[dict], config: OptimizerConfig) -> Optimizer:
    """Muon (Jordan et al. 2024), scaled to the size of AdamW's updates (Liu et al. 2025, arXiv:2502.16982)."""
    return _from_torch("Muon")(
        groups, momentum=config.betas[0], weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
