"""Is training right on this device: every way of it beside the same on the CPU in fp32."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import reduce
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor

from ....lora_core.analysis.device_check import share
from ....lora_core.runs import checkpoint
from ....lora_core.training.config import OPTIMIZERS
from ....lora_core.training.plan import Measures
from ....lora_core.training.replayed import FIRST, HELD
from ..session.graphs import lacking, replaying
from .case import Case, Training, apart, optimiser
from .networks import Network
from .rig import Outcome, Rig, whole_fp32

FP32, BF16, MOVED, REORDERED = 1e-3, 0.1, 5e-2, 1e-4
_MARK = "0" * 16
_REPLAYED = 16  # steps, of two kinds, each of which is held to steps without a graph at first


def full_precision(rig: Rig, network: Network) -> Outcome:
    with whole_fp32():
        return _beside_cpu(rig.here(network), rig.reference(network), FP32)


def half_precision(rig: Rig, network: Network) -> Outcome:
    if not comfy.model_management.should_use_bf16(rig.device) and not comfy.model_management.is_device_cpu(rig.device):
        return Outcome(None, "left out: ComfyUI does not compute in bf16 on this device")
    return _beside_cpu(rig.here(network, torch.bfloat16), rig.reference(network), BF16)


def dora(rig: Rig, network: Network) -> Outcome:
    with whole_fp32():
        return _beside_cpu(rig.here(network), rig.reference(network), FP32, dora=True)


def _beside_cpu(here: Case, reference: Case, most: float, dora: bool = False) -> Outcome:
    with here.training(dora=dora) as training:
        losses, gradient = training.gradient()
    with reference.training(dora=dora) as training:
        wanted, right = training.gradient()
    found = {"loss": apart(losses, wanted), "gradient": apart(gradient, right)}
    text = f"difference from the CPU in fp32: loss {share(found['loss'])}, gradient {share(found['gradient'])}"
    return Outcome(max(found.values()) < most, text, found)


def padded_batch(rig: Rig, network: Network) -> Outcome:
    """Captions of different lengths in one batch are what they are one by one."""
    with whole_fp32(), rig.here(network).training() as training:
        losses, gradient = training.gradient()
        alone = [training.gradient(i) for i in range(len(training.samples))]
    single = torch.cat([loss for loss, _ in alone]), reduce(torch.add, (part for _, part in alone)) / len(alone)
    found = {"loss": apart(losses, single[0]), "gradient": apart(gradient, single[1])}
    text = f"difference from the captions one by one: loss {share(found['loss'])}, gradient {share(found['gradient'])}"
    return Outcome(max(found.values()) < FP32, text, found)


def offload(rig: Rig, network: Network) -> Outcome:
    """Recomputing changes at most the order of sums, and offloading nothing at all."""
    case = rig.here(network)
    with whole_fp32():
        plain, recomputed, again, *moved = (
            _gradient(case, measures)
            for measures in (Measures(False), Measures(), Measures(), Measures(True, 0.5), Measures(True, 1.0))
        )
    found = {
        "recomputed": apart(recomputed, plain), "again": apart(again, recomputed),
        "offloaded": max(apart(gradient, recomputed) for gradient in moved),
    }  # fmt: skip
    right = found["recomputed"] < REORDERED and _repeats(found["offloaded"], found["again"])
    text = f"difference of recomputed from plain {share(found['recomputed'])}, "
    text += f"of offloaded from recomputed {share(found['offloaded'])}"
    return Outcome(right, text + _unsteady(found["again"]), found)


def optimisers(rig: Rig, network: Network) -> Outcome:
    """Two steps of every optimiser move the factors as they do on the CPU."""
    found = {name: apart(*_moved_by(name, rig, network)) for name in OPTIMIZERS}
    worst = max(found, key=found.__getitem__)
    text = f"largest difference from the CPU after two steps of each of {len(found)}: {share(found[worst])} ({worst})"
    return Outcome(found[worst] < MOVED, text, found)


def resume(rig: Rig, network: Network) -> Outcome:
    """A run that is cut off goes on as if it had not been."""
    case, config = rig.here(network), optimiser("adamw")
    with tempfile.TemporaryDirectory() as folder, whole_fp32():
        path = Path(folder) / "state.safetensors"
        with case.training(config=config) as training:
            training.steps(2)
            checkpoint.save(path, training.state, _MARK)
            straight = training.steps(2)
        with case.training(config=config) as training:
            checkpoint.load(path, training.state, _MARK)
            resumed = training.steps(2)
        with case.training(config=config) as training:
            again = training.steps(4)
    found = {"resumed": apart(resumed, straight), "again": apart(again, straight)}
    text = f"difference of the weights from an uninterrupted run: {share(found['resumed'])}"
    return Outcome(_repeats(found["resumed"], found["again"]), text + _unsteady(found["again"]), found)


def _moved_by(name: str, rig: Rig, network: Network) -> tuple[Tensor, Tensor]:
    moved = []
    for case in (rig.here(network), rig.reference(network)):
        with whole_fp32(), case.training(config=optimiser(name)) as training:
            moved.append(_change(training))
    return moved[0], moved[1]


def replayed(rig: Rig, network: Network) -> Outcome:
    """Steps that are replayed from graphs move the factors as steps without do, captions of two lengths in turn."""
    if why := lacking(rig.device):
        return Outcome(None, f"left out: {why}")
    config, told = replace(optimiser("adamw"), batch_size=1), []

    def after(steps: int, measures: Measures) -> Tensor:
        with whole_fp32(), rig.here(network).training(config=config) as training:
            with replaying(rig.device, measures, told.append) as gradient:
                return training.steps(steps, gradient)

    after(FIRST + HELD, Measures(False, graph=True))
    rig.rebase(network)  # libraries keep a work space for each stream, from when they first meet it
    plain, again, graph = (after(_REPLAYED, Measures(False, graph=graph)) for graph in (False, False, True))
    if told:
        return Outcome(None, told[0])
    figures = {"replayed": apart(graph, plain), "again": apart(again, plain)}
    text = f"{_REPLAYED} steps replayed from graphs {share(figures['replayed'])} from steps without"
    right = _repeats(figures["replayed"], figures["again"])
    return Outcome(right, text + _unsteady(figures["again"]), figures)


def _change(training: Training) -> Tensor:
    before = training.state.factors.flat.detach().cpu().clone()
    return training.steps(2) - before


def _gradient(case: Case, measures: Measures) -> Tensor:
    with case.training(measures) as training:
        return training.gradient()[1]


def _repeats(difference: float, again: float) -> bool:
    """Equal to the bit, or, on a device that does not repeat itself to the bit, about as near as it does."""
    return difference <= min(8 * again, REORDERED)


def _unsteady(again: float) -> str:
    return f" (this device repeats a step only to {again:.2g})" if again else ""


EACH = {
    "loss and gradient in fp32": full_precision,
    "loss and gradient in bf16": half_precision,
    "padded batch": padded_batch,
    "checkpointing and offload": offload,
    "DoRA": dora,
}
ONCE = {"optimisers": optimisers, "resume": resume, "steps from graphs": replayed}
