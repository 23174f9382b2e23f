"""Is a step's memory what was predicted: real widths, random weights, the device's own count of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch

from ....lora_core.analysis.device_check import CheckFinding
from ....lora_core.training.config import LoraConfig, TrainConfig
from ....lora_core.training.plan import Measures, Need, in_gb
from ..host.device import counter, free_bytes, shares_ram
from ..session.memory_plan import Planner
from ..session.rehearsal import Job
from ..session.session import trainable
from .case import Case, held
from .networks import WIDE, Network, tokens
from .rig import CPU, Outcome, Rig, guarded

LORA, ONE = LoraConfig(16, 16.0, "attention"), TrainConfig(batch_size=1, steps=100_000)
WAYS = {"plain": Measures(False), "checkpointed": Measures(), "offloaded": Measures(True, 1.0)}
_OVER, _WIDTH = 1.05, 2  # times what was predicted that may be used; bytes of a weight in bf16
NOT_COUNTED = "left out: torch cannot measure the memory of this device"


def run(rig: Rig) -> Iterator[CheckFinding]:
    """One finding for each network and each measure, then how near all of them were."""
    if counter(rig.device, "max_memory_allocated") is None:
        yield CheckFinding("memory", "predicted and real", None, NOT_COUNTED)
        return
    ratios: list[float] = []
    for network in WIDE:
        if lacks := _no_room(rig.device, network):
            yield CheckFinding("memory", network.name, None, lacks)
            continue
        case = wide_case(network, rig.device)
        for way, measures in WAYS.items():
            found = guarded("memory", f"{network.name}, {way}", lambda c=case, m=measures: _compared(c, m))
            ratios += [float(found.figures["ratio"])] if "ratio" in found.figures else []
            yield found
        del case
        held(rig.device)
    if ratios:
        yield CheckFinding("memory", "all", None, nearness(ratios), {}, verdict=True)


def wide_case(network: Network, home: torch.device) -> Case:
    with torch.inference_mode():
        return Case(network, network.build(home, torch.bfloat16, wide=True))


def job_of(network: Network) -> Job:
    return Job(LORA, ONE, network.latent, network.caption(tokens(network)), 1024)


def room_for(case: Case, measures: Measures) -> tuple[Need, str]:
    """Return what a step needs, and a sentence when it is not free."""
    with trainable(case.patcher) as patcher:
        need = Planner(patcher).need(job_of(case.network), measures)
    free = free_bytes(case.patcher.load_device)
    told = f"left out: a step needs {in_gb(need.total)} GB and {in_gb(free)} GB is free"
    return need, told if need.total > free else ""


def judged(peak: float, need: Need) -> Outcome:
    """Needing more than was predicted fails: a run would have ended out of memory after it was told that it fits."""
    ratio = peak / need.total
    text = f"predicted {in_gb(need.total)} GB, {in_gb(peak)} GB used"
    return Outcome(ratio <= _OVER, text, {"predicted": need.total, "used": peak, "ratio": ratio})


def nearness(ratios: list[float]) -> str:
    return f"memory prediction right within {max(abs(1 / ratio - 1) for ratio in ratios):.0%}"


def _compared(case: Case, measures: Measures) -> Outcome:
    need, lacks = room_for(case, measures)
    if lacks:
        return Outcome(None, lacks)
    device = case.patcher.load_device
    before = held(device)
    reset, most = (
        cast(Callable, counter(device, name)) for name in ("reset_peak_memory_stats", "max_memory_allocated")
    )
    reset(device)
    needed, length = need.total - need.weights, (tokens(case.network),)
    with case.training(measures, ONE, lora=LORA, needed=needed, lengths=length) as training:
        training.steps(2)
    return judged(most(device) - before, need)


def _no_room(device: torch.device, network: Network) -> str:
    """A sentence when the weights do not fit: into RAM, where a loader leaves them."""
    needed, free = parameters(network) * _WIDTH, free_bytes(CPU)
    if needed * 1.2 > free and not shares_ram(device):
        return f"left out: its weights take {in_gb(needed)} GB of RAM and {in_gb(free)} GB is free"
    return ""


def parameters(network: Network) -> int:
    """Return how many numbers its weights are."""
    return sum(weight.numel() for weight in network.shell(torch.device("meta"), torch.bfloat16).parameters())
