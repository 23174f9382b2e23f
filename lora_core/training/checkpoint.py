"""The exact state of a run on disk: a run that is cut off goes on to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.save import save as save_file
from .trainer import TrainState

_VERSION = "1"
_MOMENTS = ("optimizer.", "text_optimizer.")  # of each part of the factors


def save(path: Path, state: TrainState, fingerprint: str) -> None:
    """Write factors, optimiser moments, generator, data order, step and losses, atomically."""
    tensors = {"factors": state.factors.flat, "generator": state.generator.get_state()}
    for part, prefix in zip(state.factors.parts, _MOMENTS, strict=False):
        tensors |= {prefix + name: value for name, value in state.optimizer.state.get(part, {}).items()}
    progress = json.dumps({"step": state.step, "losses": state.losses, "queue": state.batches.queue})
    tensors["progress"] = torch.frombuffer(bytearray(progress.encode()), dtype=torch.uint8)
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
            f"{path.name} was written by a run with other settings; choose another run name, or start over"
        )
    progress = json.loads(bytes(tensors["progress"].tolist()))
    with torch.no_grad():
        state.factors.flat.copy_(tensors["factors"])
    state.generator.set_state(tensors["generator"])
    state.step, state.losses, state.batches.queue = progress["step"], progress["losses"], progress["queue"]
    for part, prefix in zip(state.factors.parts, _MOMENTS, strict=False):
        moments = {k.removeprefix(prefix): v.to(part.device) for k, v in tensors.items() if k.startswith(prefix)}
        if moments:
            state.optimizer.state[part] = moments


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"the checkpoint {path.name} cannot be read: {error}; delete it and start over") from error
