"""What a device has free, what it can do, and how fast it is."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import comfy.model_management
import torch
from torch import nn

from ...lora_core import fp64
from ...lora_core.training.meter import Meter
from ...lora_core.training.plan import Rates

_SIDES = (768, 2048, 4096)  # of the square matrices whose product is timed
_GROWTH, _LONG = 20, 0.1  # times the work from one to the next, at most; seconds


def free_bytes(device: torch.device) -> float:
    """What a run may use: what is free now and what ComfyUI can make free, less what it keeps for other programs."""
    free = comfy.model_management.get_free_memory(device)
    if shares_ram(device):
        return free
    models = [model for model in comfy.model_management.loaded_models() if model is not None]
    unloadable = sum(model.loaded_size() for model in models if model.load_device == device)
    return free + unloadable - comfy.model_management.extra_reserved_memory()


def shares_ram(device: torch.device) -> bool:
    return device.type in ("cpu", "mps")


def release(patcher) -> None:
    """Unload a model and its clones from whichever device they are on.

    ComfyUI by itself looks at its default device, and, where it knows of several, at all GPUs when it is asked to; a
    text encoder may also be loaded on the CPU.
    """
    manager = comfy.model_management
    everywhere = "all_devices" in inspect.signature(manager.unload_model_and_clones).parameters
    manager.unload_model_and_clones(patcher, **({"all_devices": True} if everywhere else {}))
    others = [loaded for loaded in manager.current_loaded_models if not _is_of(loaded.model, patcher)]
    left = [loaded for loaded in manager.current_loaded_models if loaded not in others]
    for device in {loaded.device for loaded in left}:
        manager.free_memory(1e30, device, others)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Apple's has no class of its own."""
    return comfy.model_management.is_oom(error) or "out of memory" in str(error)


def leaves_weights_in_ram(device: torch.device) -> bool:
    """Whether ComfyUI was started with --novram: it then loads no weight, and casts each into a buffer that is used
    again, while autograd still needs it."""
    return device.type != "cpu" and comfy.model_management.vram_state == comfy.model_management.VRAMState.NO_VRAM


@contextmanager
def loading_in_full() -> Iterator[None]:
    """Inside, ComfyUI loads what it is asked to load in full, under --novram, too."""
    manager = comfy.model_management
    before = manager.vram_state
    try:
        if before == manager.VRAMState.NO_VRAM:
            manager.vram_state = manager.VRAMState.NORMAL_VRAM
        yield
    finally:
        manager.vram_state = before


def _is_of(loaded, patcher) -> bool:
    return loaded is not None and loaded.clone_base_uuid == patcher.clone_base_uuid


def with_fp64(device: torch.device) -> torch.device:
    """The device, or the CPU where it has no fp64, as Macs, Intel's GPUs and DirectML have not."""
    return device if has_fp64(device) else torch.device("cpu")


def has_fp64(device: torch.device) -> bool:
    """Whether ComfyUI says so, and it is so: an older ComfyUI does not know of all devices."""
    return device.type == "cpu" or (comfy.model_management.supports_fp64(device) and fp64.has_fp64(device))


@cache
def rates_of(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measured in hundredths of a second: a large matrix product, large sums, small layers, and a copy from RAM."""
    large = torch.ones(2**22, device=device)
    ram = torch.ones(2**24, dtype=torch.uint8, pin_memory=device.type == "cuda")
    with Meter(device) as meter:
        _small_layers(device)
    return Rates(
        flops=_flops(device, dtype),
        moved=2 * large.nbytes / _fastest(device, lambda: large + 1),
        launch=_fastest(device, lambda: _small_layers(device)) / meter.launches,
        copied=ram.nbytes / _fastest(device, lambda: ram.to(device, copy=True)),
    )


def _flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of a matrix product a second, of the largest of three that takes at most a tenth of one: a slow device is kept
    busy by a small one, and would need seconds for what keeps a fast one busy."""
    for side in _SIDES:
        square = torch.ones(side, side, dtype=dtype, device=device)
        seconds = _fastest(device, partial(torch.mm, square, square))
        if seconds * _GROWTH > _LONG:
            break
    return 2 * side**3 / seconds


def _small_layers(device: torch.device) -> None:
    weight = torch.ones(8, 8, device=device)
    x = torch.ones(8, 8, device=device, requires_grad=True)
    for _ in range(30):
        x = nn.functional.gelu(nn.functional.linear(x, weight))
    x.sum().backward()


def _fastest(device: torch.device, work: Callable[[], object], times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            comfy.model_management.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
