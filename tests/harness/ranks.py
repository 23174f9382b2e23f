"""Ranks of a test: processes side by side that talk through gloo on the loopback, as torchrun starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

SECONDS = 60


def on_ranks(size: int, work: Callable[..., Any], folder: Path, *given: Any) -> list[Any]:
    """Return what `work(*given)` gives on each of so many ranks, by rank: what torch.load takes as weights. Nothing of
    an earlier group is in the folder. They are forks of this process, as new ones would take seconds to begin."""
    if sys.platform != "linux":
        pytest.skip("ranks of tests are forks of one process, which are safe on Linux")
    context = processes.start_processes(_one, (size, work, folder, given), size, join=False, start_method="fork")
    assert context is not None
    try:
        while not context.join(SECONDS):
            pass
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _one(rank: int, size: int, work: Callable[..., Any], folder: Path, given: tuple) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS))
    try:
        torch.save(work(*given), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
