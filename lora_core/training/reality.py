"""What a run takes beside what was predicted of it. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from .plan import GB, in_gb

JUDGED_AFTER = 3  # steps; the first allocates and compiles what later ones have
_MORE, _LEAST = 1.15, 0.25 * GB  # what a step may hold beyond the prediction
_SLOWER, _NOTICED = 3.0, 1.0  # the prediction of times is rough, and nobody waits for less than a second


@dataclass(frozen=True)
class Expected:
    """`step`: what a step holds beside weights, factors and the optimiser's state; `seconds`: what it takes."""

    step: float
    seconds: float


def difference(expected: Expected, held: float | None, seconds: float) -> str:
    """One sentence where a step holds much more memory or takes much longer than was predicted; empty where it does
    not. `held` is None on a device that does not tell."""
    more = held is not None and held > max(expected.step * _MORE, expected.step + _LEAST)
    slower = seconds > max(expected.seconds * _SLOWER, expected.seconds + _NOTICED)
    found = []
    if slower:
        found.append(f"takes {seconds:.2g} s where {expected.seconds:.2g} s was predicted")
    if more:
        found.append(f"holds {in_gb(held)} GB beside the weights where {in_gb(expected.step)} GB was predicted")
    if not found:
        return ""
    cure = (
        "when the memory of the GPU is full, Windows moves it to RAM without an error, which is slow: close other "
        "programs, or raise offload or lower batch_size or resolution"
        if slower
        else "if it runs out, raise offload or lower batch_size or resolution"
    )
    return f"a step {' and '.join(found)}; {cure}"
