"""How many eigenpairs are kept of each input, and what that takes. Sizes are in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST = 256  # pairs of one input: further ones change little, and each costs time in every step
LEAST = 16  # pairs below which the mean of the rest tells too little of them
BUDGET = 10**9  # bytes on disk for all inputs of a base
WIDE = 2**28  # bytes of all P in fp32 up to which they are held so on a device; beyond, vectors are held in fp16
AT_ONCE = 2**27  # bytes of P in fp32 that are worked with at once


def pairs_for(widths: Sequence[int], budget: int = BUDGET) -> dict[int, int]:
    """Return the number of pairs for each width; `widths` has one entry for every distinct input.

    All of a narrow input, MOST of a wide one, and fewer alike where the budget asks for it, but not under LEAST.
    """
    count = next((count for count in range(MOST, LEAST, -8) if _on_disk(widths, count) <= budget), LEAST)
    return {width: min(width, count) for width in widths}


def disk_bytes(inputs: Iterable[tuple[int, int]]) -> int:
    """Return the size of the file for inputs given as (width, pairs), its header aside: fp16 vectors, fp32 values."""
    return sum(pairs * (2 * width + 4) for width, pairs in inputs)


def is_dense(width: int, pairs: int) -> bool:
    """Return whether P takes fewer products as a matrix than by its vectors."""
    return 2 * pairs >= width


def numbers(width: int, pairs: int) -> int:
    """Return of how many numbers P is worked out."""
    return width * (width if is_dense(width, pairs) else pairs)


def is_narrow(inputs: Iterable[tuple[int, int]]) -> bool:
    """Return whether a device holds the vectors of all these inputs in fp16."""
    return sum(4 * numbers(width, pairs) for width, pairs in inputs) > WIDE


def device_bytes(inputs: Sequence[tuple[int, int]]) -> int:
    """Return what the P of distinct inputs take on the device, and those that are cast at once while they are used."""
    narrow = is_narrow(inputs)
    held = sum(numbers(*own) * (2 if narrow and not is_dense(*own) else 4) for own in inputs)
    return held + AT_ONCE * narrow


def step_flops(layers: Iterable[tuple[int, int, int]]) -> int:
    """Return the operations that a step takes more for layers given as (width, pairs, rank): A made of A~, and the
    gradient taken back."""
    return sum(
        2 * rank * (2 * width * width if is_dense(width, pairs) else 4 * width * pairs)
        for width, pairs, rank in layers
    )  # fmt: skip


def _on_disk(widths: Iterable[int], count: int) -> int:
    return disk_bytes((width, min(width, count)) for width in widths)
