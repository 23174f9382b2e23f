"""Runs of Train LoRA as the executor makes them: short ones, cut off or not, and what they leave on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import numpy as np
import pytest
import tiny
from lora_loom.lora_core.adapter import Adapter
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.train_lora import TrainLora
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from harness.calls import run_node

STEPS = 4
SETTINGS = {
    "steps": STEPS, "rank": 2, "alpha": 2.0, "learning_rate": 1e-3, "targets": "attention", "seed": 7, "batch_size": 2,
    "accumulation": 1, "run_name": "run",
}  # fmt: skip


class Outputs(NamedTuple):
    """Holds the outputs of the node, in its order."""

    lora_model: dict[str, Tensor]
    loss_map: dict[str, list[float]]
    adapter: Adapter
    sheet: Tensor
    report: str
    charts: Tensor


def read(folder: Path, trigger: str = "", **options: Any) -> Any:
    """Return a LORA_DATASET of small pictures."""
    choices = {"resolution": 64, "repeats": 1, "bucket_step": 16, **options}
    return run_node(LoraDataset, folder=str(folder), trigger=trigger, **choices)[0]


def train(trio: tiny.Loaded, data: Any, **changes: Any) -> Outputs:
    """With SETTINGS but for what is given, models included."""
    models = {"model": trio.model, "clip": trio.clip, "vae": trio.vae, "prior_vae": trio.prior_vae}
    return Outputs(*run_node(TrainLora, **{**models, "dataset": data, **SETTINGS, **changes}))


def kept(runs: Path) -> dict[str, bytes]:
    """The states and LoRAs that runs have left on disk."""
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in runs.rglob("*.safetensors")}


def write_pictures(folder: Path, seed: int = 0) -> Path:
    """Four captioned pictures of noise in two shapes."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index, (width, height) in enumerate(((80, 80), (64, 64), (96, 48), (100, 50))):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture number {index}", encoding="utf-8")
    return folder


@contextmanager
def on_forward(trio: tiny.Loaded, call: Callable[[int], None] = lambda _: None) -> Iterator[list[int]]:
    """Calls `call(n)` before the n-th forward of the diffusion network; yields the batch sizes so far. What is planned
    on tensors without memory is no forward."""
    sizes: list[int] = []

    def count(_: Any, args: tuple) -> None:
        if not isinstance(args[0], FakeTensor):
            sizes.append(len(args[0]))
            call(len(sizes))

    hook = trio.model.model.diffusion_model.register_forward_pre_hook(count)
    try:
        yield sizes
    finally:
        hook.remove()


@contextmanager
def cancelled(trio: tiny.Loaded, forward: int) -> Iterator[None]:
    """Cancel what runs inside at that forward of the diffusion network, and expect it to end by that."""

    def cancel(number: int) -> None:
        comfy.model_management.interrupt_current_processing(number == forward)

    with on_forward(trio, cancel), pytest.raises(comfy.model_management.InterruptProcessingException):
        yield
    comfy.model_management.interrupt_current_processing(False)
