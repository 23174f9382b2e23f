"""Tells which devices compute in fp64: Macs, Intel's consumer GPUs and DirectML do not."""

from __future__ import annotations

from functools import cache

import torch


def with_fp64(device: torch.device | str) -> torch.device:
    """Return the device, or the CPU where it has no fp64."""
    return torch.device(device) if has_fp64(torch.device(device)) else torch.device("cpu")


@cache
def has_fp64(device: torch.device) -> bool:
    """Found out by trying: some refuse to make such a tensor, others to compute with it."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).sqrt().sum()
    except (RuntimeError, TypeError):
        return False
    return True
