"""Keeps the exact state of a run on disk: a run that is cut off continues as if it had not been."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..files import reader
from ..files.guard import Header
from ..files.header_text import DTYPE_SIZES
from ..files.layers import TensorInfo
from ..files.save import save as save_file
from ..stored import as_dict, from_dict
from ..training import snapshot
from ..training.health import Health
from ..training.record import Point, Record
from ..training.state import TrainState

_VERSION = "3"
_GOOD = "good."
_MARK, _FINGERPRINT, _STEP, _OUTLINE = "lora_loom.checkpoint", "fingerprint", "lora_loom.step", "lora_loom.outline"
_DATA = "sshs_model_hash"  # of the data section, which every file that is saved has
_NEEDED = {"factors", "learnt", "progress", "generator"}
_MOST_HEADER = _MOST_PROGRESS = 2**26  # bytes
_MOST_LOSS = 2**53  # of whole numbers, as JSON has them of any length


class DamagedError(ValueError):
    """The file is not what was written. Nothing of it was used."""


def save(path: Path, state: TrainState, fingerprint: str) -> None:
    """Write `taken`, atomically."""
    tensors = taken(state)
    header = {_MARK: _VERSION, _FINGERPRINT: fingerprint, _STEP: str(state.step)}
    header[_OUTLINE] = _outline(header, {name: tuple(value.shape) for name, value in tensors.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(path, tensors, header, overwrite=True)


def taken(state: TrainState) -> dict[str, Tensor]:
    """Return copies on the CPU of factors, their EMA, the optimiser's state, generator, data order, step, losses, and
    what the run would go back to should it diverge."""
    progress = {
        "losses": state.losses, "queue": state.batches.queue, "health": as_dict(state.health), "events": state.events,
        "record": state.record.plain(),
    }  # fmt: skip
    progress |= {"guided": state.record.guided} if state.record.guided else {}
    tensors = snapshot.take(state)
    tensors |= {"generator": state.generator.get_state(), "progress": snapshot.as_tensor(progress)}
    if state.good is not None and snapshot.as_json(state.good["learnt"])["step"] != state.step:
        tensors |= {_GOOD + name: value for name, value in state.good.items()}
    return tensors


def load(path: Path, state: TrainState, fingerprint: str) -> None:
    """Bring `state` (freshly made from the same configuration) to where the file was written.

    Raises DamagedError, or ValueError when the file belongs to another configuration; OSError when it cannot be read.
    """
    header, tensors = _read(path)
    if header.get(_MARK) != _VERSION or header.get(_FINGERPRINT) != fingerprint:
        raise ValueError(
            f"{path.name} was written by a run with other settings or by another version of LoRA Loom; choose another "
            "run name, or start over"
        )
    if _NEEDED - tensors.keys():
        _refuse(path, f"it has no {', '.join(sorted(_NEEDED - tensors.keys()))}")
    bring(state, tensors)


def bring(state: TrainState, tensors: dict[str, Tensor]) -> None:
    """Bring a state, freshly made from the same configuration, to where it was when these were `taken`."""
    progress = snapshot.as_json(tensors.pop("progress"))
    state.generator.set_state(tensors.pop("generator").clone())  # which wants it aligned
    state.losses, state.batches.queue, state.events = progress["losses"], progress["queue"], progress["events"]
    state.health = from_dict(Health, progress["health"])
    state.record = _record(progress)
    good = {name.removeprefix(_GOOD): tensors.pop(name) for name in list(tensors) if name.startswith(_GOOD)}
    snapshot.put_back(state, tensors)
    state.good = good or tensors


def step_of(path: Path) -> int:
    """Return the step at which a state was written; 0 for one that cannot be read, or of version 0.1.0, which does not
    say."""
    try:
        with open(path, "rb") as file:
            return int(_header(path, file.read(8), file.read)[0].get(_STEP, 0))
    except (OSError, ValueError):
        return 0


def validation_of(path: Path) -> tuple[int, Record]:
    """The step at which a state was written, and the means of its validations, without what else the run remembers; 0
    and nothing for one that cannot be read. Only that part of the file is read, so nothing is known of the rest."""
    try:
        with open(path, "rb") as file:
            header, infos, start = _header(path, file.read(8), file.read)
            info = infos["progress"]
            if not 0 < info.end - info.start <= _MOST_PROGRESS:
                return 0, Record()
            file.seek(start + info.start)
            text = file.read(info.end - info.start)
        progress = json.loads(text)
        record = _record(progress)
        _check_losses(record)
        return int(header.get(_STEP, 0)) or len(progress["losses"]), _means(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return 0, Record()


def _record(progress: Mapping[str, Any]) -> Record:
    return Record.of(progress["record"], progress.get("guided")) if "record" in progress else Record()


def _means(record: Record) -> Record:
    base = [Point(0, record.base).mean] if record.base else []
    guided = {step: [Point(0, errors).mean] for step, errors in record.guided.items()}
    points = [Point(point.step, [point.mean]) for point in record.points]
    return Record(key=record.key, base=base, points=points, guided=guided)


def _check_losses(record: Record) -> None:
    """Raises ValueError where no mean can be told."""
    sound = all(type(point.step) is int and point.losses for point in record.points)
    sound = sound and all(record.guided.values())
    losses = [record.base, *(point.losses for point in record.points), *record.guided.values()]
    if not (sound and all(isinstance(each, list) and all(map(_is_loss, each)) for each in losses)):
        raise ValueError("these are no losses")


def _is_loss(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _MOST_LOSS)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors, which share one buffer; the file is read and closed, as one that is mapped cannot be
    replaced on Windows."""
    with torch.inference_mode(False), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        metadata, infos, start = _header(path, file.read(8), file.read)
        held = torch.empty(size - start, dtype=torch.uint8)
        file.readinto(held.numpy().data)
    _check_places(path, infos, len(held))
    ours = metadata.get(_MARK) == _VERSION and {_STEP, _OUTLINE} & metadata.keys()
    outline = _outline(metadata, {name: info.shape for name, info in infos.items()})
    if ours and (_DATA not in metadata or metadata.get(_OUTLINE) != outline):
        _refuse(path, "its header is not what was written")
    if _DATA in metadata and metadata[_DATA] != hashlib.sha256(held.numpy().data).hexdigest():
        _refuse(path, "its content does not match its hash")
    return metadata, reader.tensors_of(Header(path, metadata, infos, {}, 0, size), held)


def _header(path: Path, start: bytes, read: Any) -> tuple[dict[str, str], dict[str, TensorInfo], int]:
    """Metadata, what is told of the tensors, and where the data begins."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > _MOST_HEADER:
        _refuse(path, "it has no header")
    try:
        plain = json.loads(read(length))
        metadata = plain.pop("__metadata__", {})
        infos = {
            name: TensorInfo(each["dtype"], tuple(map(int, each["shape"])), *map(int, each["data_offsets"]))
            for name, each in plain.items()
        }
        return {str(name): str(value) for name, value in metadata.items()}, infos, 8 + length
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        _refuse(path, f"its header is not valid JSON ({type(error).__name__})")


def _check_places(path: Path, infos: Mapping[str, TensorInfo], size: int) -> None:
    """The tensors cover the data exactly."""
    at = 0
    for info in sorted(infos.values(), key=lambda info: (info.start, info.end)):
        if info.start != at or info.end - at != prod(info.shape) * DTYPE_SIZES.get(info.dtype, -1):
            _refuse(path, "its header is not what was written")
        at = info.end
    if at != size:
        _refuse(path, f"it has {size} bytes of data instead of {at}")


def _outline(header: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A hash over what is told beside the data."""
    told = {name: header.get(name) for name in (_MARK, _FINGERPRINT, _STEP)}
    text = json.dumps([told, {name: list(shape) for name, shape in shapes.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(path: Path, why: str) -> NoReturn:
    raise DamagedError(f"the checkpoint {path.name} cannot be read: {why}; delete it and start over")
