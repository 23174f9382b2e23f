"""The exact state of a run on disk: a run that is cut off goes on to the same bytes."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.save import save as save_file
from .trainer import TrainState

_VERSION = "2"
_PREFIX = "optimizer."


def save(path: Path, state: TrainState, fingerprint: str) -> None:
    """Write factors, their EMA, the optimiser's state, generator, data order, step and losses, atomically."""
    tensors = {"factors": state.factors.flat, "generator": state.generator.get_state()}
    if state.ema is not None:
        tensors["ema"] = state.ema
    joined, shapes = _joined(state)
    progress = {"step": state.step, "losses": state.losses, "queue": state.batches.queue, "optimizer": shapes}
    tensors |= joined | {"progress": torch.frombuffer(bytearray(json.dumps(progress).encode()), dtype=torch.uint8)}
    header = {"lora_loom.checkpoint": _VERSION, "fingerprint": fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        path, {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header, overwrite=True
    )


def load(path: Path, state: TrainState, fingerprint: str) -> None:
    """Bring `state` (freshly made from the same configuration) to where the file was written.

    Raises ValueError when the file is damaged or belongs to another configuration.
    """
    header, tensors = _read(path)
    if header.get("lora_loom.checkpoint") != _VERSION or header.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{path.name} was written by a run with other settings or by another version of LoRA Loom; choose another "
            "run name, or start over"
        )
    progress = json.loads(bytes(tensors["progress"].tolist()))
    with torch.no_grad():
        state.factors.flat.copy_(tensors["factors"])
    state.generator.set_state(tensors["generator"])
    state.step, state.losses, state.batches.queue = progress["step"], progress["losses"], progress["queue"]
    state.ema = tensors["ema"].to(state.factors.flat.device) if "ema" in tensors else None
    _restore_optimizer(state, tensors, progress["optimizer"])


def _joined(state: TrainState) -> tuple[dict[str, Tensor], list[dict[str, list[int]]]]:
    """The optimiser's state of all its parameters in one tensor per name, since some have thousands of parameters, and
    the shapes in it by parameter and name."""
    states = [state.optimizer.state.get(param, {}) for _, param in _params(state)]
    names = sorted({name for values in states for name in values})
    joined = {
        _PREFIX + name: torch.cat([values[name].detach().cpu().flatten() for values in states if name in values])
        for name in names
    }
    return joined, [{name: list(value.shape) for name, value in values.items()} for values in states]


def _restore_optimizer(state: TrainState, tensors: dict[str, Tensor], shapes: list[dict[str, list[int]]]) -> None:
    """Undo `_joined`. Scalars stay on the CPU, where optimisers count; only fused kernels count on the device."""
    rest = {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    for (group, param), shape_of in zip(_params(state), shapes, strict=True):
        for name, shape in shape_of.items():
            value, rest[_PREFIX + name] = rest[_PREFIX + name].tensor_split([prod(shape)])
            device = param.device if shape or group.get("fused") else "cpu"
            state.optimizer.state[param][name] = value.view(shape).to(device, copy=True)


def _params(state: TrainState) -> list[tuple[dict, Tensor]]:
    return [(group, param) for group in state.optimizer.param_groups for param in group["params"]]


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"the checkpoint {path.name} cannot be read: {error}; delete it and start over") from error
