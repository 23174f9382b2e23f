"""Tells how long a step takes beside the frozen model's, what the device does of that time, and how fast weights reach
it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import comfy.model_management
import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]  # it has no other place
from torch.profiler import ProfilerActivity, profile, supported_activities

from ....lora_core.analysis.device_check import CheckFinding
from ....lora_core.training import objective
from ....lora_core.training.meter import Meter
from ....lora_core.training.objective_config import ObjectiveConfig
from ....lora_core.training.plan import Measures, in_gb
from ....lora_core.training.replayed import FIRST, HELD
from ..host.device import counter, free_bytes, shares_ram, streams_of, synchronize
from ..model.denoiser import ComfyDenoiser
from ..session.graphs import lacking, replaying
from ..session.rates import copied, fastest
from ..session.session import loaded, trainable
from ..session.staging import STAGED
from .case import Case
from .memory import LORA, ONE, parameters, room_for, wide_case
from .native import native_step
from .networks import FLUX, SD15, WIDE, Network, tokens
from .rig import CPU, Outcome, Rig, guarded

Step = Callable[[], object]
Way = Callable[[], AbstractContextManager[Step | str]]  # or why there is none
FROZEN, OURS = "frozen", "ours"
WAYS = {OURS: Measures(False), "ours, graph": Measures(False, graph=True)}
WAYS |= {"ours, recomputed": Measures(), "ours, offloaded": Measures(True, 1.0)}
NATIVE = "ComfyUI's own trainer"
_ROUNDS, _QUICK = (3, 10), (1, 3)  # steps before the time is taken, and those that are timed
_ROOM = 2.4  # bytes for each number of a wide network
_BUSY = 0.8  # of the time of a step; below it the device waits for its next operator


@dataclass(frozen=True)
class TimedStep:
    """Seconds of a step; `launches` are kernels of the device, or operators where it does not tell of its kernels, and
    `busy` is the share of the time in which they ran, where it is known."""

    seconds: float
    launches: int
    busy: float | None


def run(rig: Rig, quick: bool) -> Iterator[CheckFinding]:
    """One finding for each way on each network, what they come to, and the copies."""
    for network, case in _cases(rig, quick):
        yield from _of_network(network, case, _QUICK if quick else _ROUNDS)
        case = None  # before the next is made
    yield guarded("time", "copies", lambda: _copies(rig.device, 2 ** (24 if quick else 28)))


def _cases(rig: Rig, quick: bool) -> Iterator[tuple[Network, Case]]:
    """Wide networks on a device with memory of its own and room for them; else, and in the quick form, tiny ones."""
    free = min(free_bytes(CPU), free_bytes(rig.device))
    wide = () if quick or shares_ram(rig.device) else [n for n in WIDE if _ROOM * parameters(n) < free]
    for network in wide:
        yield network, wide_case(network, rig.device)
    for network in () if wide else (FLUX,) if quick else (SD15, FLUX):
        yield network, rig.here(network)


def _of_network(network: Network, case: Case, rounds: tuple[int, int]) -> Iterator[CheckFinding]:
    ways: dict[str, Way] = {FROZEN: partial(_frozen, case)}
    ways |= {name: partial(_ours, case, measures) for name, measures in WAYS.items()}
    ways[NATIVE] = partial(native_step, case, _length(case), LORA.rank)
    known: dict[str, TimedStep] = {}
    for name, way in ways.items():
        measures = WAYS.get(name, Measures(name == NATIVE))
        found = guarded("time", f"{network.name}, {name}", partial(_step, case, name, way, measures, rounds, known))
        yield replace(found, passed=None) if name == NATIVE else found  # which is not ours to mend
    if {FROZEN, OURS} <= known.keys():
        yield CheckFinding("time", f"{network.name}, all", None, _verdict(network, known), {}, verdict=True)


def _step(
    case: Case, name: str, way: Way, measures: Measures, rounds: tuple[int, int], known: dict[str, TimedStep]
) -> Outcome:
    if case.network in WIDE and (lacks := room_for(case, measures)[1]):
        return Outcome(None, lacks)
    if measures.replays and (why := lacking(case.patcher.load_device)):
        return Outcome(None, f"left out: {why}")
    with way() as step:
        if isinstance(step, str):
            return Outcome(None, step)
        known[name] = timed = _timed(step, case.patcher.load_device, rounds)
    figures = {"seconds": timed.seconds, "launches": timed.launches}
    figures |= {} if timed.busy is None else {"busy": timed.busy}
    beside = f", {timed.seconds / known[FROZEN].seconds:.2f} x frozen" if name != FROZEN and FROZEN in known else ""
    return Outcome(None, f"{timed.seconds * 1e3:.4g} ms a step{beside}{_launched(timed)}", figures)


def _launched(timed: TimedStep) -> str:
    if timed.busy is None:
        return f", {timed.launches} operators"
    return f", {timed.launches} kernels, GPU busy {timed.busy:.0%}"


def _verdict(network: Network, known: dict[str, TimedStep]) -> str:
    ours, frozen, native = known[OURS], known[FROZEN], known.get(NATIVE)
    told = f"{network.name}: step {ours.seconds / frozen.seconds:.2f} x frozen"
    if native:
        told += f", ComfyUI's own trainer {native.seconds / frozen.seconds:.2f} x"
    if ours.busy is None:
        return told
    return f"{told}, GPU busy {ours.busy:.0%}" + (": launch-bound" if ours.busy < _BUSY else "")


@contextmanager
def _frozen(case: Case) -> Iterator[Step]:
    """A forward and a backward to the input, without a LoRA or an optimiser."""
    with trainable(case.patcher) as patcher, loaded(patcher, Measures(False)):
        denoiser = ComfyDenoiser(patcher)
        x0 = torch.zeros(1, *case.network.latent, device=denoiser.device, requires_grad=True)
        noise, sigma = torch.randn_like(x0), denoiser.sigma(torch.tensor([0.5])).to(denoiser.device)
        caption = denoiser.condition(case.network.caption(_length(case)), x0[0].detach())
        yield lambda: objective.loss(denoiser, x0, noise, sigma, [caption], ObjectiveConfig()).backward()


@contextmanager
def _ours(case: Case, measures: Measures) -> Iterator[Step | str]:
    told: list[str] = []
    with case.training(measures, ONE, lora=LORA, lengths=(_length(case),)) as training:
        with replaying(case.patcher.load_device, measures, told.append) as gradient:
            if gradient:
                training.steps(FIRST + HELD, gradient)
            yield told[0] if told else partial(training.steps, 1, gradient)


def _length(case: Case) -> int:
    return tokens(case.network) if case.network in WIDE else 16


def _timed(step: Step, device: torch.device, rounds: tuple[int, int]) -> TimedStep:
    seconds, (warm, timed) = [], rounds
    for done in range(warm + timed):
        comfy.model_management.throw_exception_if_processing_interrupted()
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds += [time.perf_counter() - started] * (done >= warm)
    typical = statistics.median(seconds)
    launches, ran = _kernels(step, device) or (_operators(step, device), None)
    return TimedStep(typical, launches, None if ran is None else min(ran / typical, 1.0))


def _kernels(step: Step, device: torch.device) -> tuple[int, float] | None:
    """Return how many kernels the device runs in a step, and for how many seconds; None where torch cannot see them."""
    if counter(device, "max_memory_allocated") is None or ProfilerActivity.CUDA not in supported_activities():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        synchronize(device)
    kernels = [event for event in seen.events() or () if event.device_type == DeviceType.CUDA]
    return (len(kernels), sum(event.time_range.elapsed_us() for event in kernels) / 1e6) if kernels else None


def _operators(step: Step, device: torch.device) -> int:
    with Meter(device) as meter:
        step()
    return meter.launches


def _copies(device: torch.device, size: int) -> Outcome:
    """From memory that is pinned, that is not, that is a file's, and through the buffers of offloaded blocks."""
    if shares_ram(device):
        return Outcome(None, "left out: this device computes in RAM, so nothing needs to be copied")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "copied"
        torch.zeros(size, dtype=torch.uint8).numpy().tofile(path)
        mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        plain = torch.zeros(size, dtype=torch.uint8)
        places = {"pageable": plain, "mapped": mapped, "pinned": plain.pin_memory()}
        rates = {name: size / fastest(device, partial(place.to, device, copy=True)) for name, place in places.items()}
        del mapped, places
    if streams_of(device) is not None:
        rates[STAGED] = copied(device, STAGED)
    text = ", ".join(f"{name} {in_gb(rate)} GB/s" for name, rate in rates.items())
    return Outcome(None, f"copies to the device: {text}", rates, verdict=True)
