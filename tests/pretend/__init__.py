"""A device for tests without a GPU, which keeps a GPU's rules: `pretend:0`.

Its tensors are PyTorch's own with memory on the host and kernels borrowed from the CPU (device.cpp). What a GPU would
not do raises: tensors of two devices in one operator, types and operators that the kind of device lacks. Launches,
waits of the host, bytes copied and bytes held are counted.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

NAME = "pretend"
SOURCE = Path(__file__).with_name("device.cpp")
_COMPOSITE = ("MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


class NoCompilerError(RuntimeError):
    """There is no g++ to build the device with."""


@dataclass(frozen=True)
class Rules:
    """Describes what a kind of device has; `memory` is in bytes."""

    fp64: bool = True
    every_operator: bool = True
    memory: int = 12 * 2**30

    def lacking(self) -> list[str]:
        return [] if self.every_operator else sorted(without_mps())


RULES = {"gpu": Rules(), "mac": Rules(fp64=False, every_operator=False), "arc": Rules(fp64=False)}


class Totals(NamedTuple):
    """Since the last reset, but for `held`; the last four in bytes. A stall is a wait of the host for the device."""

    launches: int
    stalls: int
    to_device: int
    to_host: int
    held: int
    peak: int


def install(rules: Rules) -> torch.device:
    """Make the device known to this process, under these rules. Raises NoCompilerError where it cannot be built."""
    device = torch.device(_registered(), 0)
    torch.ops.pretend.rule(rules.fp64, rules.lacking())
    return device


def totals() -> Totals:
    return Totals(*torch.ops.pretend.totals())


def counted() -> Counter[str]:
    """How often each operator was launched, and each kind of copy made, since the last reset."""
    return Counter({name: int(times) for name, times in (each.rsplit("=", 1) for each in torch.ops.pretend.counted())})


def reset() -> None:
    torch.ops.pretend.reset()


def without_mps() -> Iterator[str]:
    """Names of the operators that this torch has kernels of for CPU or CUDA, and none for Apple's GPUs."""
    import torchgen
    import yaml

    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    functions = {row["func"].partition("(")[0]: row for row in yaml.safe_load(table.read_text(encoding="utf-8"))}
    there = {name.partition(".")[0] for name, row in functions.items() if _runs_on_mps(row, functions)}
    there |= set(re.findall(r'\.impl\("(\w+)"', Path(torch.backends.mps.__file__).read_text(encoding="utf-8")))
    yield from ("aten::" + name for name in {name.partition(".")[0] for name in functions} - there)


def _runs_on_mps(row: dict, functions: dict[str, dict]) -> bool:
    keys = functions.get(row.get("structured_delegate", ""), row).get("dispatch")
    return keys is None or any(key in _COMPOSITE for names in keys for key in re.split(r",\s*", names))


def _registered() -> str:
    if hasattr(torch, NAME):
        return NAME
    torch.ops.load_library(str(_library()))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    torch.ops.pretend.start()
    return NAME


def _library() -> Path:
    """device.cpp, compiled once for its text and this torch: half a minute. Another user's is not taken."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"lora-loom-pretend-{os.getuid()}-{key}.so"
    if not built.exists() or built.stat().st_uid != os.getuid():
        compiler, home, part = shutil.which("g++"), Path(torch.__file__).parent, built.with_suffix(f".{os.getpid()}")
        if compiler is None:
            raise NoCompilerError("the pretend device is built with g++, which is not there; install g++")
        include = [f"-I{home / 'include'}", f"-I{home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
        link = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
        subprocess.run(
            [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", "-w", *include, str(SOURCE), "-o", str(part), *link],
            check=True,
        )
        part.replace(built)
    return built


def _module() -> ModuleType:
    """Make what torch asks of a device's own module, as `torch.cuda`."""
    module = ModuleType(f"torch.{NAME}")
    answers = {
        "is_available": True, "is_initialized": True, "_is_in_bad_fork": False, "device_count": 1, "current_device": 0,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    for name in ("_lazy_init", "set_device", "synchronize", "manual_seed", "manual_seed_all", "set_rng_state"):
        setattr(module, name, lambda *_, **__: None)
    module.get_rng_state = lambda *_, **__: torch.empty(0, dtype=torch.uint8)
    module.memory_allocated = lambda *_: totals().held
    module.max_memory_allocated = lambda *_: totals().peak
    module.reset_peak_memory_stats = lambda *_: torch.ops.pretend.reset_peak()
    module.device = lambda *_: nullcontext()
    module.Stream = torch.Stream
    module._initialized = True
    return module
