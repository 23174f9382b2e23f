"""Holds what all checks share: networks on the device and on the CPU, and what must be as it was after each check."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath

import torch

from ....lora_core.analysis.device_check import CheckFinding, without_paths
from ....lora_core.swap import swapped
from .case import Case, held
from .networks import Network

CPU = torch.device("cpu")
_LOST = 2**20  # bytes on the device that a check may leave behind: libraries round up


@dataclass(frozen=True)
class Outcome:
    """Describes what one check found; see CheckFinding."""

    passed: bool | None
    text: str
    figures: Mapping[str, float | str] = field(default_factory=dict)
    verdict: bool = False


@dataclass(frozen=True)
class Rig:
    """Networks as they are asked for, each made once for every device and type."""

    device: torch.device
    _cases: dict[tuple, Case] = field(default_factory=dict)
    _weights: dict[tuple, str] = field(default_factory=dict)
    _memory: dict[str, int | None] = field(default_factory=dict)

    def here(self, network: Network, dtype: torch.dtype = torch.float32) -> Case:
        return self._case(network, self.device, dtype)

    def reference(self, network: Network) -> Case:
        """On the CPU in fp32."""
        return self._case(network, CPU, torch.float32)

    def _case(self, network: Network, home: torch.device, dtype: torch.dtype) -> Case:
        key = network.name, str(home), dtype
        if key not in self._cases:
            self._cases[key] = case = Case.of(network, home, dtype)
            self._weights[key] = case.fingerprint()
        return self._cases[key]

    def rebase(self, network: Network) -> None:
        """Take what lies on the device now for what was there before the checks of this network."""
        self._memory[network.name] = held(self.device)

    def left(self, network: Network) -> str:
        """Say what the checks of this network have left behind: weights that are not those it was made with, or, since
        it was first asked, memory; empty when nothing."""
        now = held(self.device)
        own = [(case, self._weights[key]) for key, case in self._cases.items() if case.network is network]
        if any(case.fingerprint() != weights for case, weights in own):
            return "the weights of the base model were changed"
        before = self._memory.setdefault(network.name, now)
        lost = 0 if before is None or now is None else now - before
        return f"{lost / 2**20:.1f} MiB were not freed on the device" if lost > _LOST else ""


def guarded(section: str, name: str, work: Callable[[], Outcome], left: Callable[[], str] = str) -> CheckFinding:
    """Return what a check found, or how it failed. Whatever is wrong with a device can raise anything, and telling it
    is what a check is for; a cancel is no Exception."""
    try:
        found = work()
        wrong = left()
    except Exception as error:
        told = without_paths(f"{type(error).__name__}: {error}").strip()
        return CheckFinding(section, name, False, told[:500], {"at": _where(error)})
    if wrong:
        return CheckFinding(section, name, False, f"{found.text}; {wrong}", found.figures)
    return CheckFinding(section, name, found.passed, found.text, found.figures, found.verdict)


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return " > ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)


@contextmanager
def whole_fp32() -> Iterator[None]:
    """Products of fp32 numbers in fp32: some GPUs round them to 10 bits (TF32), which would hide a mistake."""
    with swapped((place, "allow_tf32", False) for place in (torch.backends.cuda.matmul, torch.backends.cudnn)):
        yield
