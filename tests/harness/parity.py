"""Networks of nodes/bridge/networks beside those of diffusers: the same weights in both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
STORED = {
    "fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip


def shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(weight.shape) for name, weight in network.state_dict().items()}


def made(
    network: Any,
    sizes: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    operations: Any = comfy.ops.disable_weight_init,
) -> Any:
    """One of ours with these weights, all of them and no others; without any it is on the meta device."""
    device = "meta" if weights is None else "cpu"
    built = network(**sizes, dtype=dtype, device=device, operations=operations).eval().requires_grad_(False)
    if weights is not None:
        built.load_state_dict(weights)
    return built


def theirs(network: Any, weights: Mapping[str, Tensor], **config: Any) -> Any:
    """One of diffusers with these weights, all of them and no others."""
    built = network(**config).eval().requires_grad_(False)
    built.load_state_dict(weights)
    return built


def at_real_size(network: Any, **config: Any) -> Shapes:
    """The names and shapes of one of diffusers, without its weights."""
    with torch.device("meta"):
        return shapes_of(network(**config))


def stored_as(
    network: Any, sizes: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Any, Any]:
    """One of ours whose weights are stored in that type and cast where they are used, and one in fp32 that has exactly
    the same numbers."""
    rounded = {name: weight.to(dtype).float() for name, weight in weights.items()}
    stored = made(network, sizes, weights, dtype, comfy.ops.manual_cast)
    return stored, made(network, sizes, rounded)
