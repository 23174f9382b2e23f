"""Keeps what the latest run of each model file needed, so that the next one can be told of before it is queued."""

from __future__ import annotations

import os
from typing import Any

from ....lora_core.training.plan import Measures
from ..host.model_files import files_of, on_record, put_on_record
from ..host.wires import Model
from .rehearsal import Job

_RECORD = "model_needs.json"
_MOST = 100  # model files


def keep_need(model: Model, job: Job, asked: Measures, total: float) -> None:
    """`total` bytes were foreseen for the job, with whatever measures it took beyond those that were asked for."""
    path = next(iter(files_of(model)), "")
    stamp = _stamp(path)
    if not stamp:
        return
    known = {name: value for name, value in on_record(_RECORD).items() if name != path}
    of = {
        "resolution": job.resolution, "batch_size": job.config.batch_size, "rank": job.lora.rank,
        "targets": job.lora.preset, "gradient_checkpointing": asked.checkpointing, "offload": asked.offload,
        "text_rank": job.text_rank,
    }  # fmt: skip
    put_on_record(_RECORD, {**dict(list(known.items())[1 - _MOST :]), path: [*stamp, round(total), of]})


def known_need(path: str) -> tuple[int, dict[str, Any]] | None:
    """Return the bytes that the latest run of this very file needed, and the settings that decide it."""
    entry = on_record(_RECORD).get(path)
    if not isinstance(entry, list) or len(entry) != 4 or entry[:2] != _stamp(path):
        return None
    total, of = entry[2:]
    return (total, of) if isinstance(total, int) and isinstance(of, dict) else None


def _stamp(path: str) -> list[int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_size, found.st_mtime_ns]
