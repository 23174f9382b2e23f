"""Tells what a device has free, and what it can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

import comfy.model_management
import torch

from ....lora_core import fp64
from ....lora_core.swap import swapped
from .wires import Model


def free_bytes(device: torch.device) -> float:
    """Return the bytes that a run may use: what is free now and what ComfyUI can make free, less what it keeps for
    other programs."""
    free = unused(device)
    if shares_ram(device):
        return free
    models = [model for model in comfy.model_management.loaded_models() if model is not None]
    unloadable = sum(model.loaded_size() for model in models if model.load_device == device)
    return free + unloadable - comfy.model_management.extra_reserved_memory()


def unused(device: torch.device) -> float:
    """Return the bytes that are free on a device now."""
    return cast(float, comfy.model_management.get_free_memory(device))  # a tuple only when it is asked for more


def shares_ram(device: torch.device) -> bool:
    return device.type in ("cpu", "mps")


def streams_of(device: torch.device) -> ModuleType | None:
    """Return torch's module of the device's streams and events; None where copies and computing take turns."""
    return torch.cuda if comfy.model_management.is_device_cuda(device) else None


def may_pin() -> bool:
    """Return whether ComfyUI pins memory, which --disable-pinned-memory forbids."""
    return getattr(comfy.model_management, "MAX_PINNED_MEMORY", 1) > 0


def release(patcher: Model) -> None:
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
    """Return whether ComfyUI was started with --novram: it then loads no weight, and casts each into a buffer that is
    used again, while autograd still needs it."""
    return device.type != "cpu" and comfy.model_management.vram_state == comfy.model_management.VRAMState.NO_VRAM


@contextmanager
def loading_in_full() -> Iterator[None]:
    """Inside, ComfyUI loads what it is asked to load in full, under --novram, too."""
    manager = comfy.model_management
    in_full = manager.VRAMState.NORMAL_VRAM if manager.vram_state == manager.VRAMState.NO_VRAM else manager.vram_state
    with swapped([(manager, "vram_state", in_full)]):
        yield


def _is_of(loaded: Model | None, patcher: Model) -> bool:
    return loaded is not None and loaded.clone_base_uuid == patcher.clone_base_uuid


def with_fp64(device: torch.device) -> torch.device:
    """The device, or the CPU where it has no fp64, as Macs, Intel's GPUs and DirectML have not."""
    return device if has_fp64(device) else torch.device("cpu")


def has_fp64(device: torch.device) -> bool:
    """Return whether ComfyUI says so, and it is so: an older ComfyUI does not know of all devices."""
    return device.type == "cpu" or (comfy.model_management.supports_fp64(device) and fp64.has_fp64(device))


def counter(device: torch.device, name: str) -> Callable | None:
    """Return a function of the device's module of torch, as torch.cuda.memory_allocated; None where it has none."""
    return getattr(getattr(torch, device.type, None), name, None)


def synchronize(device: torch.device) -> None:
    """Wait for what is queued there. ComfyUI's own waits for CUDA and Intel only."""
    if wait := counter(device, "synchronize"):
        wait()
