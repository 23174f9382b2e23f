"""Takes what a run has learnt out of its state and puts it back exactly: factors, EMA, optimiser and step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .pairs import grad_of

if TYPE_CHECKING:
    from .state import TrainState

_OPTIMIZER = "optimizer."


def take(state: TrainState) -> dict[str, Tensor]:
    """Copies on the CPU, under names that fit a file. Random draws and data order are not among them."""
    tensors = {"factors": _copy(state.factors.flat)}
    if state.ema is not None:
        tensors["ema"] = _copy(state.ema)
    joined, shapes = _joined(state)
    return tensors | joined | {"learnt": as_tensor({"step": state.step, "optimizer": shapes})}


def put_back(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Undo all learning since `take`, or bring a fresh state of the same configuration there."""
    learnt = as_json(tensors["learnt"])
    with torch.no_grad():
        state.factors.flat.copy_(tensors["factors"])
        grad_of(state.factors.flat).zero_()
    state.step = learnt["step"]
    del state.losses[state.step :]
    state.ema = tensors["ema"].to(state.factors.flat.device, copy=True) if "ema" in tensors else None
    state.optimizer.state.clear()
    _restore_optimizer(state, tensors, learnt["optimizer"])


def as_tensor(value: Any) -> Tensor:
    """JSON as a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def as_json(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()))


def _joined(state: TrainState) -> tuple[dict[str, Tensor], list[dict[str, list[int]]]]:
    """The optimiser's state of all its parameters in one tensor per name, since some have thousands of parameters, and
    the shapes in it by parameter and name."""
    states = [state.optimizer.state.get(param, {}) for _, param in _params(state)]
    names = sorted({name for values in states for name in values})
    joined = {
        _OPTIMIZER + name: torch.cat([values[name].detach().cpu().flatten() for values in states if name in values])
        for name in names
    }
    return joined, [{name: list(value.shape) for name, value in values.items()} for values in states]


def _restore_optimizer(state: TrainState, tensors: Mapping[str, Tensor], shapes: list[dict[str, list[int]]]) -> None:
    """Undo `_joined`. Scalars stay on the CPU, where optimisers count; only fused kernels count on the device."""
    rest = {name: tensor for name, tensor in tensors.items() if name.startswith(_OPTIMIZER)}
    for (group, param), shape_of in zip(_params(state), shapes, strict=True):
        for name, shape in shape_of.items():
            value, rest[_OPTIMIZER + name] = rest[_OPTIMIZER + name].tensor_split([prod(shape)])
            device = param.device if shape or group.get("fused") else "cpu"
            state.optimizer.state[param][name] = value.view(shape).to(device, copy=True)


def _params(state: TrainState) -> list[tuple[dict, Tensor]]:
    return [(group, param) for group in state.optimizer.param_groups for param in group["params"]]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
