"""Networks of nodes/bridge/networks as ComfyUI has them: layers from comfy.ops, weights of any type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

PLAIN = comfy.ops.disable_weight_init
CAST = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def shapes(network: nn.Module | Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of its weights, or of those given, by name."""
    weights = network.state_dict() if isinstance(network, nn.Module) else network
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def stored(
    network: type[nn.Module], config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> Any:
    """A network whose weights, all of them, are stored in that type and cast at use."""
    made = network(**config, dtype=dtype, image_model="of a base model", operations=comfy.ops.manual_cast)
    made.load_state_dict(weights)
    return made.eval()
