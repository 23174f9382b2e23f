"""Corrections as tensors and plain values by name, as ranks send them to one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..low_rank import LowRank


def packed_layer(layer: LowRank) -> dict[str, Any]:
    return {"A": layer.lora_A, "B": layer.lora_B, "alpha": layer.alpha, "kernel": list(layer.kernel)}


def unpacked_layer(held: Mapping[str, Any]) -> LowRank:
    return LowRank(held["A"], held["B"], held["alpha"], tuple(held["kernel"]))
