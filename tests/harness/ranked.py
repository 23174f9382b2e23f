"""Runs of Train LoRA by two processes side by side, each in a ComfyUI of its own with folders of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.comfyui import ROOT
from harness.inprocess import alias_pack, load_comfyui

CHILD = "import sys; sys.path.append(sys.argv[1]); from harness.ranked import main; main(sys.argv[2], int(sys.argv[3]))"
RUNS: dict[str, dict[str, Any]] = {  # of one process and of two
    "plain": {"batch_size": 4},
    "preserving": {"accumulation": 2, "preserve": "photo", "preservation": 1.0, "text_rank": 2, "offload": 0.5},
}
STEPS_FIRST = 2  # of a run that is cut off


def start(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what each rank tells of its runs: weights, losses, report, error, and how often what was called."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(ROOT / "tests"), str(folder)]
    children = [
        subprocess.Popen([*command, str(rank)], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [child.communicate(timeout=300)[1] for child in children]
    assert not any(child.returncode for child in children), "\n".join(each[-3000:] for each in said)
    return {rank: _read(folder / f"told{rank}") for rank in range(2)}


def _read(path: Path) -> dict[str, Any]:
    import torch
    from lora_loom.lora_core.ranks.exchange import unpacked

    return unpacked(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))


def main(folder: str, rank: int) -> None:
    alias_pack()
    load_comfyui(Path(folder, f"base{rank}"))
    import torch.distributed as dist
    from lora_loom.lora_core.ranks.exchange import packed

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    told = {name: _told(make) for name, make in _cases(Path(folder), rank).items()}
    dist.destroy_process_group()
    Path(folder, f"told{rank}").write_bytes(packed(told).numpy().tobytes())


def _told(make: Callable[[], Any]) -> dict[str, Any]:
    import comfy.model_management
    from lora_loom.lora_core.files import formats

    try:
        out = make()
    except comfy.model_management.InterruptProcessingException:
        return {"cancelled": True}
    except (ValueError, RuntimeError) as error:
        return {"error": str(error)}
    return {**what(out), "file": formats.encode(out.adapter, "native")}


def what(out: Any) -> dict[str, Any]:
    """Return what came out of a run, as it is compared."""
    weights = {name: layer.delta() for name, layer in out.adapter.layers.items()}
    return {"weights": weights, "losses": out.loss_map["loss"], "report": out.report, "shape": list(out.sheet.shape)}
