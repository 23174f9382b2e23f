"""Counts layers and trained numbers of networks at their published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tiny
import torch
from benchmarks._real import Real
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.targets import select
from torch import nn

RANK = 16
TARGETS = ("attention", "attention+mlp", "all-linear")


def sizes(real: Real) -> dict[str, Any]:
    """Return billions of weights, layers and trained numbers by targets, of a rank of 16."""
    network = tiny.built(real.row, "meta", torch.bfloat16).diffusion_model
    chosen = {targets: select(network, LoraConfig(RANK, RANK, targets)) for targets in TARGETS}
    return {
        "billions": round(sum(weight.numel() for weight in network.state_dict().values()) / 1e9, 3),
        "layers": {targets: len(layers) for targets, layers in chosen.items()},
        "numbers": {targets: _numbers(layers) for targets, layers in chosen.items()},
    }


def _numbers(layers: Mapping[str, nn.Module]) -> int:
    return Factors(layers, RANK, RANK, None, device=torch.device("meta")).flat.numel()
