"""Tells how the weights of offloaded blocks reach a device: from where they lie, or through pinned buffers.

A device copies beside its computing only from memory that is pinned. Read-only pages of a file, as ComfyUI's dynamic
VRAM keeps weights, cannot be; neither can what ComfyUI or the driver refuses. Such weights are filled into one of two
pinned buffers by a thread, and copied from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..host.device import may_pin, streams_of, unused
from ..host.wires import Model
from ..model.frozen import alike, ordinary

WAYS = PINNED, STAGED, PAGEABLE = "pinned", "staged", "pageable"  # the fastest first
_ALIGNED, COUNT = 256, 2  # bytes that a part begins at a multiple of; buffers: one is filled while one is copied out of


@dataclass(frozen=True)
class StagingSide:
    """The stream of a device on which copies are made beside its computing; `streams` is torch's module of them."""

    streams: Any
    device: torch.device
    stream: Any

    def entered(self) -> AbstractContextManager:
        return self.streams.stream(self.stream)

    def wait_for_computing(self) -> None:
        """Copies from now on come after the computing that is queued so far."""
        self.stream.wait_stream(self.streams.current_stream(self.device))

    def let_computing_wait(self) -> None:
        """Computing from now on comes after the copies that are queued so far."""
        self.streams.current_stream(self.device).wait_stream(self.stream)


def side_of(device: torch.device) -> StagingSide | None:
    """Return a new one; None for a device that copies before it computes."""
    streams = streams_of(device)
    return None if streams is None else StagingSide(streams, device, streams.Stream(device))


class Staging:
    """Fills copies of weights on a device from a thread of its own, through `buffers` where weights are not `pinned`
    (addresses of those that are).

    Memory for copies is taken in the thread that computes: the stream that waited for its work may then use it, while
    in another thread memory could be taken that this work, queued in between, has not done with.
    """

    def __init__(self, buffers: Iterable[Tensor], pinned: Set[int], side: StagingSide):
        self.pinned, self.side = pinned, side
        self.buffers = [(buffer, side.streams.Event(blocking=True)) for buffer in buffers]
        self.turns = cycle(self.buffers)
        self.thread = ThreadPoolExecutor(1, "lora-loom-offload")
        self.filling: Future | None = None

    def copies(self, originals: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors on the device that are copies once `queued` has returned and the side stream is waited for;
        to be called on the side stream."""
        copies = [blank(original, self.side.device) for original in originals]
        pairs = [
            pair
            for original, copy in zip(originals, copies, strict=True)
            for pair in zip(parts(original), parts(copy), strict=True)
        ]
        self.filling = self.thread.submit(self._fill, pairs)
        return copies

    def queued(self) -> None:
        """Wait until the last copies are queued on the side stream. Raises what went wrong in the thread."""
        filling, self.filling = self.filling, None
        if filling is not None:
            filling.result()

    def close(self) -> None:
        """End the thread, wait until nothing is copied out of the buffers any more, and let go of them."""
        self.thread.shutdown(cancel_futures=True)
        for _, emptied in self.buffers:
            emptied.synchronize()
        self.buffers, self.turns, self.filling = [], iter(()), None

    def _fill(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        (buffer, emptied), start = next(self.turns), 0
        emptied.synchronize()  # what was last filled in has been copied out
        with torch.inference_mode(), self.side.entered():
            try:
                for source, target in pairs:
                    if source.data_ptr() not in self.pinned:
                        source, start = _filled(buffer, start, source, target)
                    target.copy_(source, non_blocking=True)
            finally:
                emptied.record(self.side.stream)
                pairs.clear()  # whoever computes frees the copies


def _filled(buffer: Tensor, start: int, source: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """Copy `source` into the buffer, laid out as `target`; return it there and where the next begins."""
    size = target.numel() * target.itemsize
    room = buffer[start : start + size].view(target.dtype).as_strided(target.size(), target.stride())
    return room.copy_(source), start + _aligned(size)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def room_for(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of a buffer that takes them all."""
    return sum(_aligned(part.numel() * part.itemsize) for tensor in tensors for part in parts(tensor))


def parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that make up one of any class, on the same memory."""
    if is_traceable_wrapper_subclass(tensor):
        return [part for name in tensor.__tensor_flatten__()[0] for part in parts(getattr(tensor, name))]
    return [_plain(tensor)]


def _plain(tensor: Tensor) -> Tensor:
    return tensor if type(tensor) in (Tensor, nn.Parameter) else ordinary(tensor)


def blank(tensor: Tensor, device: torch.device) -> Tensor:
    """Make one of the same class, shape and attributes on the device, not filled."""
    if is_traceable_wrapper_subclass(tensor):
        names, context = tensor.__tensor_flatten__()
        inner = {name: blank(getattr(tensor, name), device) for name in names}
        kind: Any = type(tensor)
        made = kind.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
        return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
    return alike(torch.empty_like(_plain(tensor), device=device), tensor)


@dataclass(frozen=True)
class Copying:
    """The `way` in which offloaded weights reach the device."""

    way: str
    staging: Staging | None = None


@contextmanager
def copying(patcher: Model, weights: Mapping[str, Tensor], largest: int) -> Iterator[Copying]:
    """Pin these weights of a ModelPatcher, by their keys, or, where some cannot be, two buffers of `largest` bytes.

    The patcher unpins its weights itself when it is detached.
    """
    side = side_of(patcher.load_device)
    if side is None:
        yield Copying(PAGEABLE)
        return
    with ExitStack() as undo:
        buffers = undo.enter_context(pinned_buffers(largest))  # first: weights are pinned until ComfyUI refuses one
        pinned = _pinned(patcher, weights)
        whole = all(weight.data_ptr() in pinned for weight in weights.values())
        if whole or not buffers:
            undo.close()
            buffers.clear()
            yield Copying(PINNED if whole else PAGEABLE)
        else:
            staging = Staging(buffers, pinned, side)
            undo.callback(staging.close)
            yield Copying(STAGED, staging)


def foreseen(device: torch.device, weights: Sequence[Tensor], largest: int) -> str:
    """Tell the way before anything is pinned; it is another where ComfyUI or the driver then refuses."""
    if streams_of(device) is None or not may_pin():
        return PAGEABLE
    if not any(map(is_read_only, weights)):
        return PINNED
    return STAGED if _fit_in_ram(largest) else PAGEABLE


def is_read_only(tensor: Tensor) -> bool:
    """Return whether the memory is pages of a file that ComfyUI has mapped to read, as under dynamic VRAM."""
    return any(hasattr(part.untyped_storage(), "_comfy_tensor_mmap_refs") for part in parts(tensor))


@contextmanager
def pinned_buffers(size: int, count: int = COUNT) -> Iterator[list[Tensor]]:
    """Yield so many of `size` bytes, or none where they cannot all be had."""
    buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(count)] if may_pin() and _fit_in_ram(size) else []
    with ExitStack() as undo:
        for buffer in buffers:
            if not comfy.model_management.pin_memory(buffer):
                undo.close()
                buffers = []
                break
            undo.callback(comfy.model_management.unpin_memory, buffer)
        yield buffers


def _fit_in_ram(size: int) -> bool:
    return COUNT * size < unused(torch.device("cpu"))


def _pinned(patcher: Model, weights: Mapping[str, Tensor]) -> Set[int]:
    """Pin what can be; return the addresses. A refusal costs a warning and a wait, so nothing is tried after one."""
    pinned: set[int] = set()
    for key, weight in weights.items():
        if is_read_only(weight) or not weight.is_contiguous():
            continue
        patcher.pin_weight_to_device(key)
        if key not in patcher.pinned and weight.data_ptr() not in pinned and not weight.is_pinned():
            break
        pinned.add(weight.data_ptr())
    return pinned
