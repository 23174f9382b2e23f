"""Memory for large new tensors."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.fresh import empty_like

LARGE = 40 * 2**20


def test_is_as_torch_makes_it() -> None:
    for shape, dtype in [
        ((3, 5), torch.float32),
        ((LARGE // 8, 4), torch.bfloat16),
        ((LARGE // 16, 2, 2), torch.float32),
    ]:
        like = torch.empty(shape, dtype=dtype)
        made = empty_like(like)
        assert (made.shape, made.dtype, made.device, made.stride()) == (like.shape, dtype, like.device, like.stride())
        made.fill_(3)
        assert made.sum() == 3 * made.numel() or dtype == torch.bfloat16
    strided = torch.empty(2, LARGE).t()
    assert empty_like(strided).stride() == strided.stride()
    assert empty_like(strided, torch.device("meta")).is_meta


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_goes_back_with_the_tensor() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    made = empty_like(torch.empty(LARGE // 4, device="meta"), torch.device("cpu")).fill_(1)
    kept = made[1:2]
    held = resident()
    del made
    gc.collect()
    assert resident() > held - LARGE // 2 and kept == 1
    del kept
    gc.collect()
    assert resident() < held - LARGE // 2
