"""Counts what a step of each family is at its real size, without a weight in memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import _comfy  # first: makes comfy importable
import torch
from _real import REAL
from benchmarks._sizes import RANK, sizes
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.plan import Measures
from lora_loom.lora_core.training.presets import PRESETS
from lora_loom.nodes.bridge.session.rehearsal import Job, traced
from lora_loom.nodes.bridge.session.session import trainable

BATCHES = (1, 2, 4)


def work(name: str, targets: str, pixels: int) -> tuple[int, dict[int, list[int]]]:
    """Return the numbers of a latent, and the work of one pass by pictures in it: FLOP, bytes moved, operators. Blocks
    are recomputed, as they are unless a person or the memory says otherwise."""
    real = REAL[name]
    model = _comfy.build(real.row, torch.bfloat16, weights=False)
    model.load_device = torch.device("cpu")
    latent, found = real.latent(model, pixels), {}
    with trainable(model) as patcher:
        for batch in BATCHES:
            config = TrainConfig(batch_size=batch)
            job = Job(LoraConfig(RANK, RANK, targets), config, latent, real.conditioning(), pixels)
            found[batch] = [*asdict(traced(patcher, job, Measures()).work).values()]
    return torch.Size(latent).numel(), found


def counted(name: str) -> dict[str, Any]:
    """Return what `_scaling.Counted` reads."""
    real = REAL[name]
    preset = PRESETS[real.preset]
    latent, found = work(name, preset.targets, preset.resolution)
    return {**sizes(real), "targets": preset.targets, "pixels": preset.resolution, "latent": latent, "work": found}
