"""Compares what a run takes with what was predicted of it. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from .plan import GB, in_gb

JUDGED_AFTER = 3  # steps; the first allocates and compiles what later ones have
_MORE, _LEAST = 1.15, 0.25 * GB  # what a step may hold beyond the prediction
_SLOWER, _NOTICED = 3.0, 1.0  # the prediction of times is rough, and nobody waits for less than a second
_FULL = 0.92  # of a device's memory in use; Windows leaves some of it to what draws the screen
_CURE = "raise offload or lower batch_size or resolution"


@dataclass(frozen=True)
class Expected:
    """`step`: what a step holds beside weights, factors and the optimiser's state; `seconds`: what it takes, with
    `offloaded` weights copied in the way in which they really are."""

    step: float
    seconds: float
    offloaded: bool = False


@dataclass(frozen=True)
class Seen:
    """Holds what was seen of the first steps: bytes that one `held` beside the weights, its `seconds`, and the bytes of
    the device that all programs had in use, `used` of `total`; None where a device does not tell. `spills`: the driver
    moves what does not fit to RAM and raises no error, as on Windows."""

    held: float | None
    seconds: float
    used: float | None = None
    total: float | None = None
    spills: bool = False

    def full(self) -> bool:
        return self.used is not None and self.total is not None and self.used >= _FULL * self.total


def difference(expected: Expected, seen: Seen) -> str:
    """One sentence where a step holds much more memory or takes much longer than was predicted: the verdict, the
    figures and what to do. Empty where it does not."""
    held = seen.held
    slower = seen.seconds > max(expected.seconds * _SLOWER, expected.seconds + _NOTICED)
    figures = []
    if slower:
        figures.append(f"takes {seen.seconds:.2g} s ({expected.seconds:.2g} s predicted)")
    if held is not None and held > max(expected.step * _MORE, expected.step + _LEAST):
        figures.append(f"uses {in_gb(held)} GB besides the weights ({in_gb(expected.step)} GB predicted)")
    if not figures:
        return ""
    verdict, cure = _slow(expected, seen) if slower else _large()
    return f"{verdict}: a step {' and '.join(figures)}; {cure}"


def _large() -> tuple[str, str]:
    return "training needs more memory than predicted", f"if memory runs out, {_CURE}"


def _slow(expected: Expected, seen: Seen) -> tuple[str, str]:
    cure = f"close other programs, or {_CURE}"
    spilled = "Windows then moves data to RAM, which is slow; " if seen.spills else ""
    if seen.used is None or seen.total is None:
        return "training is slower than predicted", f"the GPU's memory may be full: {spilled}{cure}"
    in_use = f"{in_gb(seen.used)} of {in_gb(seen.total)} GB of GPU memory are in use"
    if seen.full():
        return "training is slow because GPU memory is full", f"{in_use}; {spilled}{cure}"
    disk = ", and whether RAM is full, so that offloaded weights are read from disk again" * expected.offloaded
    return "training is slower than predicted", (
        f"{in_use}, so memory is not the reason; check whether another program uses the GPU{disk}"
    )
