"""ComfyUI on the pretend device, as it would run on a GPU of that size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import torch

from . import Rules, install, totals


def use(rules: Rules) -> torch.device:
    """Make ComfyUI, imported with --cpu and with no model loaded, load and compute on the device from now on."""
    device = install(rules)
    management.cpu_state = management.CPUState.GPU
    management.vram_state = management.set_vram_to = management.VRAMState.NORMAL_VRAM
    management.total_vram = rules.memory / 2**20
    management.get_torch_device = lambda: device
    management.get_all_torch_devices = lambda exclude_current=False: [] if exclude_current else [device]
    management.get_free_memory = _memory(management.get_free_memory, lambda: rules.memory - totals().held, 0)
    management.get_total_memory = _memory(management.get_total_memory, lambda: rules.memory, rules.memory)
    management.should_use_bf16 = management.should_use_fp16 = lambda *_, **__: False  # tests compare in fp32
    management.supports_fp64 = lambda device=None: rules.fp64 or _is_host(device)
    for name in ("supports_fp8_compute", "supports_nvfp4_compute", "supports_mxfp8_compute"):
        setattr(management, name, lambda device=None: False)
    management.synchronize = lambda *_: None
    management.soft_empty_cache = lambda force=False: None
    management.extended_fp16_support = lambda: True
    management.pytorch_attention_flash_attention = lambda: False
    management.get_autocast_device = lambda _: "cpu"
    return device


def _is_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _memory(of_host: Callable, of_device: Callable[[], int], torchs: int) -> Callable:
    """ComfyUI's question for bytes, with those that torch's allocator has of them when asked for both."""

    def asked(dev: Any = None, torch_free_too: bool = False, torch_total_too: bool = False) -> Any:
        both = torch_free_too or torch_total_too
        if _is_host(dev):
            return of_host(torch.device("cpu"), both)
        return (of_device(), torchs) if both else of_device()

    return asked
