"""Counts what a step of each family is at its published size, without a weight in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import comfy.model_patcher
import torch
from benchmarks._real import META, Real, shell
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.plan import Measures
from lora_loom.lora_core.training.presets import PRESETS
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.session.rehearsal import Job, traced
from lora_loom.nodes.bridge.session.session import trainable
from torch import nn

RANK, BATCHES = 16, (1, 2, 4)
TARGETS = ("attention", "attention+mlp", "all-linear")


def counted(real: Real) -> dict[str, Any]:
    """Return what `_scaling.Counted` reads: with the targets and at the resolution of the family's preset."""
    preset = PRESETS[real.preset]
    own = {"targets": preset.targets, "pixels": preset.resolution}
    return {**sizes(real), **own, **work(real, preset.targets, preset.resolution)}


def sizes(real: Real) -> dict[str, Any]:
    """Return billions of weights; layers and trained numbers by targets."""
    network = shell(real.row, torch.bfloat16).diffusion_model
    chosen = {targets: select(network, LoraConfig(RANK, RANK, targets)) for targets in TARGETS}
    return {
        "billions": round(sum(weight.numel() for weight in network.state_dict().values()) / 1e9, 3),
        "layers": {targets: len(layers) for targets, layers in chosen.items()},
        "numbers": {targets: _numbers(layers) for targets, layers in chosen.items()},
    }


def _numbers(layers: Mapping[str, nn.Module]) -> int:
    return Factors(layers, RANK, RANK, None, device=torch.device("meta")).flat.numel()


def work(real: Real, targets: str, pixels: int, batches: tuple[int, ...] = BATCHES) -> dict[str, Any]:
    """Return the numbers of a latent, and the work of one pass by pictures in it: FLOP, bytes moved, operators. Blocks
    are recomputed, as they are unless a person or the memory says otherwise."""
    model = comfy.model_patcher.ModelPatcher(shell(real.row, torch.bfloat16), torch.device("cpu"), META)
    latent, found = real.latent(model, pixels), {}
    with trainable(model) as patcher:
        for batch in batches:
            config = TrainConfig(batch_size=batch)
            job = Job(LoraConfig(RANK, RANK, targets), config, latent, real.conditioning(), pixels)
            found[str(batch)] = [*asdict(traced(patcher, job, Measures()).work).values()]
    return {"latent": torch.Size(latent).numel(), "work": found}
