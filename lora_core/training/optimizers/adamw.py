"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), torch's: 8 bytes of state per parameter."""

from __future__ import annotations

from typing import Any

from torch.optim import AdamW

_FUSED = ("cpu", "cuda", "mps", "xpu")


def adamw(groups: list[dict[str, Any]], weight_decay: float, beta1: float, beta2: float, eps: float) -> AdamW:
    """Return torch's, with its fused kernel on devices that have one."""
    fused = groups[0]["params"][0].device.type in _FUSED
    return AdamW(groups, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=fused)
