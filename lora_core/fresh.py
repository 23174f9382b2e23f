"""Memory for large new tensors on a CPU.

A new block of memory costs one page fault for every 4 KiB, three times what it takes to write a LoRA into it; Linux has
pages of 2 MiB for those who ask (transparent huge pages). The C library maps blocks of more than 32 MiB anew each time
and asks for nothing.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

_LARGE = 32 * 2**20


def empty_like(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """`torch.empty_like`, on the tensor's device by default."""
    size = tensor.numel() * tensor.element_size()
    if (device or tensor.device).type != "cpu" or size <= _LARGE or not tensor.is_contiguous() or not _can_ask():
        return torch.empty_like(tensor, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def _can_ask() -> bool:
    return hasattr(mmap, "MADV_HUGEPAGE")
