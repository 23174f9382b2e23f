"""Tells how fast a device is, measured in hundredths of a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn

from ....lora_core.training.meter import Meter
from ....lora_core.training.plan import Rates
from ..host.device import synchronize
from .staging import COUNT, PAGEABLE, PINNED, STAGED, Staging, StagingSide, pinned_buffers, side_of

_COPIED, _BLOCKS = 2**24, 4  # bytes of a copy; weights of a block, and blocks, of a staged one
_SIDES = (768, 2048, 4096)  # of the square matrices whose product is timed
_GROWTH, _LONG = 20, 0.1  # times the work from one to the next, at most; seconds


@cache
def rates_of(device: torch.device, dtype: torch.dtype, way: str) -> Rates:
    """Return a large matrix product, large sums, small layers, and copies from RAM in that way."""
    large = torch.ones(2**22, device=device)
    with Meter(device) as meter:
        _small_layers(device)
    return Rates(
        flops=_flops(device, dtype),
        moved=2 * large.nbytes / fastest(device, lambda: large + 1),
        launch=fastest(device, lambda: _small_layers(device)) / meter.launches,
        copied=copied(device, way),
        overlapped=way != PAGEABLE,
    )


def copied(device: torch.device, way: str) -> float:
    """Return bytes a second; of memory that is not pinned where none can be."""
    with pinned_buffers(_COPIED, {PINNED: 1, STAGED: COUNT}.get(way, 0)) as buffers:
        ram = buffers[0] if way == PINNED and buffers else torch.ones(_COPIED, dtype=torch.uint8)
        if way != STAGED or not buffers:
            return ram.nbytes / fastest(device, lambda: ram.to(device, copy=True))
        with closing(Staging(buffers, frozenset(), cast(StagingSide, side_of(device)))) as staging:
            return _BLOCKS * ram.nbytes / fastest(device, partial(_staged, staging, ram.chunk(_BLOCKS)))


def _staged(staging: Staging, block: Sequence[Tensor]) -> None:
    for _ in range(_BLOCKS):
        with staging.side.entered():
            staging.copies(block)
    staging.queued()


def _flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations a second in a matrix product, the largest of three that takes at most a tenth of one: a
    slow device is kept busy by a small one, and would need seconds for what keeps a fast one busy."""
    for side in _SIDES:
        square = torch.ones(side, side, dtype=dtype, device=device)
        seconds = fastest(device, partial(torch.mm, square, square))
        if seconds * _GROWTH > _LONG:
            break
    return 2 * side**3 / seconds


def _small_layers(device: torch.device) -> None:
    weight = torch.ones(8, 8, device=device)
    x = torch.ones(8, 8, device=device, requires_grad=True)
    for _ in range(30):
        x = nn.functional.gelu(nn.functional.linear(x, weight))
    x.sum().backward()


def fastest(device: torch.device, work: Callable[[], object], times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
