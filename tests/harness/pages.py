"""Weights in read-only pages of a file, as ComfyUI's dynamic VRAM keeps them."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

_ALIGNED = 64


@contextmanager
def on_pages(network: nn.Module, path: Path) -> Iterator[Callable[[int], bool]]:
    """Inside, the network's parameters lie in pages of the file, with ComfyUI's mark of such; yields whether an address
    is one of these pages'."""
    places = [(own._parameters, name) for own in network.modules() for name, _ in own.named_parameters(recurse=False)]
    originals = [slots[name] for slots, name in places]
    path.write_bytes(b"".join(map(_padded, originals)))
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view, start = memoryview(pages), 0
    first = _tensor(view, 0, 1, torch.uint8).data_ptr()
    try:
        for (slots, name), weight in zip(places, originals, strict=True):
            mapped = _tensor(view, start, weight.numel(), weight.dtype).view(weight.shape)
            mapped.untyped_storage()._comfy_tensor_mmap_refs = (pages, view)
            slots[name] = nn.Parameter(mapped, requires_grad=False)
            start += len(_padded(weight))
        yield lambda address: first <= address < first + len(pages)
    finally:
        for (slots, name), weight in zip(places, originals, strict=True):
            slots[name] = weight


def _padded(weight: Tensor) -> bytes:
    data = weight.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return data + bytes(-len(data) % _ALIGNED)


def _tensor(view: memoryview, start: int, count: int, dtype: torch.dtype) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(view, dtype=dtype, offset=start, count=count)
