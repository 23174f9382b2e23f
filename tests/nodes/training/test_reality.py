"""A run on a device that tells what it holds: the first steps are held to the prediction, once."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_loom.lora_core.training.plan import GB
from lora_loom.lora_core.training.reality import JUDGED_AFTER, Expected
from lora_loom.nodes.bridge.host.device import is_out_of_memory
from lora_loom.nodes.bridge.training import reality
from lora_loom.nodes.bridge.training.reality import Reality


class Device:
    """Stands for torch.cuda: 7 GB of 12 lie there, and a step holds `held` more."""

    def __init__(self, held: float):
        self.held, self.resets = held, 0

    def mem_get_info(self, _device: Any) -> tuple[float, float]:
        return 5 * GB - self.held, 12 * GB

    def memory_allocated(self, _device: Any) -> float:
        return 7 * GB

    def reset_peak_memory_stats(self, _device: Any) -> None:
        self.resets += 1

    def max_memory_allocated(self, _device: Any) -> float:
        return 7 * GB + self.held


@pytest.mark.parametrize("held", [2 * GB, 5 * GB])
def test_the_first_steps_are_held_to_the_prediction(monkeypatch, held: float) -> None:
    device, told = Device(held), []
    monkeypatch.setattr(torch, "cuda", device)
    monkeypatch.setattr(reality, "tell", lambda _progress, text: told.append(text))
    run = Reality(torch.device("cuda"), Expected(2 * GB, 60.0), SimpleNamespace(notes=()))
    assert list(run.over(iter(range(6)))) == list(range(6))
    assert device.resets == JUDGED_AFTER and len(told) == 1
    assert ("uses 5.0 GB besides the weights (2.0 GB predicted)" in told[0]) == (held > 2 * GB)


@pytest.mark.parametrize("system", ["Windows", "Linux"])
@pytest.mark.parametrize("held", [2 * GB, 4.9 * GB])
def test_steps_that_are_slow_name_how_full_the_device_is(monkeypatch, held: float, system: str) -> None:
    told, clock = [], count(0, 50)
    monkeypatch.setattr(reality, "platform", SimpleNamespace(system=lambda: system))
    monkeypatch.setattr(torch, "cuda", Device(held))
    monkeypatch.setattr(reality, "tell", lambda _progress, text: told.append(text))
    monkeypatch.setattr(reality, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    run = Reality(torch.device("cuda"), Expected(held, 1.5), SimpleNamespace(notes=()))
    for _ in run.over(iter(range(3))):
        next(clock)  # a preview
    assert told[0].startswith("training is slow because GPU memory is full") == (held > 4 * GB)
    assert f"{(7 * GB + held) / GB:.1f} of 12.0 GB of GPU memory are in use" in told[0]
    assert ("Windows" in told[0]) == (held > 4 * GB and system == "Windows")


def test_what_is_held_between_steps_is_not_a_steps(monkeypatch) -> None:
    device, told = Device(2 * GB), []
    monkeypatch.setattr(torch, "cuda", device)
    monkeypatch.setattr(reality, "tell", lambda _progress, text: told.append(text))
    monkeypatch.setattr(device, "reset_peak_memory_stats", lambda _device: setattr(device, "held", 2 * GB))
    for _ in Reality(torch.device("cuda"), Expected(2 * GB, 60.0), SimpleNamespace(notes=())).over(iter(range(3))):
        device.held = 5 * GB  # a preview
    assert told == [""]


def test_out_of_memory_is_known_in_every_form() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("for the test"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
