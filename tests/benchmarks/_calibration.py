"""Tells the simulator what one process and two took, and holds what it predicts against what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks._scaling import shares
from benchmarks._simulator import Host, Jitter, Step, on_host

LARGE = 2**20  # numbers of an all-reduce whose time is that of its bytes
Line = tuple[str, ...]


def typical(measured: Mapping[str, Any]) -> float:
    return median(measured["seconds"])


def host_of(found: Mapping[str, Any]) -> Host:
    """Fit what a message costs to all-reduces of two processes, each of which sends two of half the bytes, one after
    the other; how processes slow each other down to passes side by side that send nothing."""
    cores, two = found["cores"], found["reduce"]["2"]
    pause = min(map(typical, two.values())) / 2
    large = {int(numbers): each for numbers, each in two.items() if int(numbers) >= LARGE}
    byte = median((typical(each) - 2 * pause) / (4 * numbers) for numbers, each in large.items())
    busy = min(1.0, median(each["cores"] for each in large.values()))
    return Host(cores, pause, byte * busy, byte * (1 - busy), _slow(found, cores))


def _slow(found: Mapping[str, Any], cores: int) -> tuple[tuple[int, float], ...]:
    """A pass beside others over one alone, beyond what it waits for a core."""
    alone = typical(found["compute"]["1"])
    beside = [(int(n), typical(each) / alone / max(1, int(n) / cores)) for n, each in found["crowded"].items()]
    return ((1, 1.0), *((n, max(1.0, times)) for n, times in beside))


def jitter_of(found: Mapping[str, Any]) -> Jitter:
    """All passes of one process alone, each over the median of its size."""
    factors = [s / typical(each) for each in found["compute"].values() for s in each["seconds"]]
    return Jitter(tuple(factors))


def ready_of(found: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(min(1.0, median(times)) for times in zip(*found["ready"], strict=True))


def predicted_reduce(found: Mapping[str, Any], ranks: int, numbers: int) -> float:
    return on_host(Step((0.0,) * ranks, 0.0, 4 * numbers), host_of(found), steps=1)


def predicted_step(found: Mapping[str, Any], shares: Sequence[int], overlap: bool) -> float:
    step = _step(found, shares, typical(found["update"]), ready_of(found) if overlap else (1.0,))
    return on_host(step, host_of(found), jitter_of(found))


def predicted_loop(found: Mapping[str, Any], ranks: int) -> float:
    """A step of Train LoRA's own loop; what that of one process takes beside its pass is not shared out."""
    alone = typical(found["loop"]["1"]) - typical(found["compute"][str(found["batch"])])
    step = _step(found, shares(found["batch"], ranks), max(alone, typical(found["update"])))
    return on_host(step, host_of(found), jitter_of(found))


def _step(found: Mapping[str, Any], own: Sequence[int], update: float, ready: tuple[float, ...] = (1.0,)) -> Step:
    return Step(tuple(typical(found["compute"][str(n)]) for n in own), update, 4.0 * found["numbers"], ready)


def checks(found: Mapping[str, Any]) -> tuple[Line, list[Line]]:
    """Return the table of what was predicted beside what was measured: milliseconds."""
    lines = []
    for ranks, by_size in found["reduce"].items():
        for numbers, each in by_size.items():
            if int(numbers) >= LARGE:
                fitted = " (fitted)" if ranks == "2" else ""
                what = f"all-reduce of {4 * int(numbers) / 2**20:.0f} MiB, {ranks} processes{fitted}"
                lines.append(_line(what, predicted_reduce(found, int(ranks), int(numbers)), each))
    for each in found["steps"]:
        shares, overlap = each["case"]["shares"], each["case"]["overlap"]
        what = f"step, {' + '.join(map(str, shares))} pictures{', overlapped' if overlap else ''}"
        lines.append(_line(what, predicted_step(found, shares, overlap), each))
    for ranks, each in loops(found).items():
        what = f"Train LoRA's loop, batch {found['batch']}, {ranks} processes"
        lines.append(_line(what, predicted_loop(found, ranks), each))
    return ("", "predicted ms", "measured ms", "error"), lines


def loops(found: Mapping[str, Any]) -> dict[int, Any]:
    """Return what was measured of Train LoRA's loop on several processes."""
    return {int(ranks): each for ranks, each in found["loop"].items() if ranks != "1"}


def shared_runs(found: Mapping[str, Any]) -> tuple[Line, list[Line]]:
    """Return the table of one process against several: the step, and the sum in it."""
    alone = typical(found["loop"]["1"])
    lines: list[Line] = [("1", f"{alone * 1e3:.0f}", "1.00", "0", "")]
    for ranks, each in loops(found).items():
        seconds, summed = typical(each), median(each["sums"])
        times, part = f"{alone / seconds:.2f}", f"{100 * summed / seconds:.0f} %"
        lines.append((str(ranks), f"{seconds * 1e3:.0f}", times, f"{each['bytes'] / 1e6:.2f}", part))
    return ("processes", "ms a step", "times as fast as one", "MB summed", "time in the sum"), lines


def _line(what: str, predicted: float, measured: Mapping[str, Any]) -> Line:
    seconds = typical(measured)
    spread = f"{seconds * 1e3:.1f} [{min(measured['seconds']) * 1e3:.1f}..{max(measured['seconds']) * 1e3:.1f}]"
    return what, f"{predicted * 1e3:.1f}", spread, f"{predicted / seconds - 1:+.0%}"


def errors(found: Mapping[str, Any]) -> list[float]:
    """Return predicted over measured, less one, of all steps."""
    steps = found["steps"]
    predicted = [predicted_step(found, each["case"]["shares"], each["case"]["overlap"]) for each in steps]
    predicted += [predicted_loop(found, ranks) for ranks in loops(found)]
    return [a / typical(each) - 1 for a, each in zip(predicted, [*steps, *loops(found).values()], strict=True)]
