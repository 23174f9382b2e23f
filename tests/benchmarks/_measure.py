"""Time alternatives against each other inside one process, so that whatever else runs slows all of them alike.

A ratio is `median [lowest..highest]` of the ratios taken within each round; the order rotates from round to round.
Absolute times are those of the machine as it was and mean little; `--cpu-time` counts what this process used of it.
Importing this makes `harness`, `tiny` and the pack importable.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.append(str(Path(__file__).resolve().parents[1]))

from harness.inprocess import alias_pack  # noqa: E402

alias_pack()
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # silences the profiler about GPUs that are not there

MIB = 2**20
Step = Callable[[], object]
Variant = Callable[[], AbstractContextManager[Step]]  # entering and leaving are not timed, only the step is


_clock = time.perf_counter
_markdown = False


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} [{_short(self.low)}..{_short(self.high)}]"


class Times:
    """Seconds by variant and round. A slow variant may have fewer rounds than the others."""

    def __init__(self, names: Sequence[str]):
        self.seconds: dict[str, dict[int, float]] = {name: {} for name in names}

    def milliseconds(self, name: str) -> Spread:
        return Spread.of([seconds * 1e3 for seconds in self.seconds[name].values()])

    def rounds(self, name: str) -> str:
        return str(len(self.seconds[name]))

    def ratio(self, name: str, reference: str) -> Spread:
        """Return the ratio of their times, over the rounds in which both ran."""
        own, other = self.seconds[name], self.seconds[reference]
        return Spread.of([own[index] / other[index] for index in own if index in other])


def plain(step: Step) -> Variant:
    """A variant without set-up."""
    return lambda: nullcontext(step)


def alternate(variants: Mapping[str, Variant], rounds: int, patience: float = 30.0) -> Times:
    """Every round runs every variant once; one that has used up `patience` seconds sits out the later rounds.

    Nothing is warmed up here: run each variant once before, for its result or its `peak`.
    """
    times, names = Times(list(variants)), list(variants)
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            if sum(times.seconds[name].values()) > patience:
                continue
            with variants[name]() as step:
                started = _clock()
                step()
                _finish()
                times.seconds[name][index] = _clock() - started
    return times


def peak(step: Step) -> tuple[object, int]:
    """Run `step`; return its result, and the most bytes that torch held during it beyond what it held before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return step(), torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        result = step()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return result, most


def mebibytes(size: float) -> str:
    return _short(size / MIB)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds of every comparison (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="the smallest case of each kind, two rounds")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, on a machine that is shared")
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse, set up torch, and print what this is measured on."""
    global _clock, _markdown
    options = parser.parse_args()
    _markdown = options.markdown
    _clock = time.process_time if options.cpu_time else time.perf_counter
    options.rounds = 2 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} thread(s)"
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{parser.description}\ntorch {torch.__version__} on {device} of {os.cpu_count()} cores{load}", flush=True)
    print("ratios are median [lowest..highest] over rounds; MiB is the peak allocated beyond what was there")
    return options


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    if _markdown:
        lines.insert(1, ["---"] * len(header))
        print(f"\n{title}\n", *(f"| {' | '.join(line)} |" for line in lines), sep="\n", flush=True)
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        _print(line, widths)


def growing_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], widths: Sequence[int]) -> None:
    """A table whose rows are printed as they are made, in columns that are at least so wide."""
    print(f"\n{title}")
    widths = [max(len(cell), width) for cell, width in zip(header, widths, strict=True)]
    _print(header, widths)
    for row in rows:
        _print([str(cell) for cell in row], widths)


def _print(cells: Sequence[str], widths: Sequence[int]) -> None:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    print("  " + "  ".join(padded).rstrip(), flush=True)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.3g}"
