"""Tells what a check ran on: the device and the software, without a path or a name of anybody's or of a machine."""

from __future__ import annotations

import enum
import platform
from typing import cast

import comfy.cli_args
import comfy.ldm.modules.attention
import comfy.memory_management
import comfy.model_management
import comfyui_version
import torch

from ....lora_core.training.plan import in_gb
from ..host.device import unused

_CPU = torch.device("cpu")


def who(device: torch.device) -> dict[str, str]:
    """By what a person calls it."""
    management = comfy.model_management
    free, whole = unused(device), _whole(device)
    return {
        "Device": management.get_torch_device_name(device),
        "Memory": f"{in_gb(free)} of {in_gb(whole)} GB free",
        "RAM": f"{in_gb(unused(_CPU))} of {in_gb(_whole(_CPU))} GB free",
        "Driver": _driver(device),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "System": f"{platform.system()} {_release()}, {platform.machine()}, {_threads()}",
        "ComfyUI": comfyui_version.__version__,
        "Memory of models": f"{management.vram_state.name}, dynamic VRAM {_on(_dynamic())}",
        "Attention": comfy.ldm.modules.attention.optimized_attention.__name__,
        "Types": ", ".join(f"{name} {_on(can)}" for name, can in _types(device).items()),
        "Flags": ", ".join(flags()) or "none",
    }


def _whole(device: torch.device) -> float:
    return cast(float, comfy.model_management.get_total_memory(device))  # a tuple only when it is asked for more


def flags() -> list[str]:
    """Return what ComfyUI was started with: of texts, which may be paths or names, only that they were given."""
    parser, given = comfy.cli_args.parser, vars(comfy.cli_args.args)
    told = {name: value for name, value in given.items() if (value or None) != (parser.get_default(name) or None)}
    return [_flag(name, value) for name, value in sorted(told.items())]


def _flag(name: str, value: object) -> str:
    told = "--" + name.replace("_", "-")
    if isinstance(value, enum.Enum):
        return f"{told} {value.value}"
    return f"{told} {value}" if isinstance(value, (int, float)) and not isinstance(value, bool) else told


def _types(device: torch.device) -> dict[str, bool]:
    """Return what the device computes in, as ComfyUI knows it."""
    management = comfy.model_management
    asked = {"fp8": "supports_fp8_compute", "fp64": "supports_fp64"}
    known = {name: getattr(management, function)(device) for name, function in asked.items() if _has(function)}
    return {"bf16": management.should_use_bf16(device), **known}


def _has(function: str) -> bool:
    return hasattr(comfy.model_management, function)


def _dynamic() -> bool:
    return bool(getattr(comfy.memory_management, "aimdo_enabled", False))


def _driver(device: torch.device) -> str:
    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    if version is None or comfy.model_management.is_device_cpu(device) or not torch.cuda.is_available():
        return "none"
    number = version()
    return f"for CUDA {number // 1000}.{number % 1000 // 10}, torch's own {torch.version.cuda or torch.version.hip}"


def _release() -> str:
    """The first two numbers: some builds are called after a machine or its owner."""
    return ".".join(platform.release().split("-")[0].split(".")[:2])


def _threads() -> str:
    return f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _on(value: object) -> str:
    return "yes" if value else "no"
