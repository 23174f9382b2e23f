"""The exact state of a run on disk: a run that is cut off goes on to the same bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.save import save as save_file
from . import snapshot
from .health import Health
from .record import Record
from .trainer import TrainState

_VERSION = "3"
_GOOD = "good."


def save(path: Path, state: TrainState, fingerprint: str) -> None:
    """Write factors, their EMA, the optimiser's state, generator, data order, step, losses, and what the run would go
    back to should it diverge, atomically."""
    progress = {
        "losses": state.losses, "queue": state.batches.queue, "health": asdict(state.health), "events": state.events,
        "record": state.record.plain(),
    }  # fmt: skip
    tensors = snapshot.take(state)
    tensors |= {"generator": state.generator.get_state(), "progress": snapshot.as_tensor(progress)}
    if state.good is not None and snapshot.as_json(state.good["learnt"])["step"] != state.step:
        tensors |= {_GOOD + name: value for name, value in state.good.items()}
    header = {"lora_loom.checkpoint": _VERSION, "fingerprint": fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(path, tensors, header, overwrite=True)


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
    progress = snapshot.as_json(tensors.pop("progress"))
    state.generator.set_state(tensors.pop("generator"))
    state.losses, state.batches.queue, state.events = progress["losses"], progress["queue"], progress["events"]
    state.health = Health(**progress["health"])
    state.record = Record.of(progress["record"]) if "record" in progress else Record()
    good = {name.removeprefix(_GOOD): tensors.pop(name) for name in list(tensors) if name.startswith(_GOOD)}
    snapshot.put_back(state, tensors)
    state.good = good or tensors


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"the checkpoint {path.name} cannot be read: {error}; delete it and start over") from error
