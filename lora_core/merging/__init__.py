"""Merging: the exact sum, and methods that combine what several LoRAs do to one layer, one file each.

A method is a function from a `Task` to the merged core. To add one, add its file, a row here and a test.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import dare, della, iso, k_lora, karcher, magnitude, null_space, orthogonal, slerp, ties, tsv
from .task import Task

SUM, AUTO = "sum", "auto"

METHODS: dict[str, Callable[[Task], Tensor]] = {
    "ties": ties.combine, "dare": dare.combine, "della": della.combine, "magnitude": magnitude.combine,
    "slerp": slerp.combine, "karcher": karcher.combine, "null_space": null_space.combine,
    "orthogonal": orthogonal.combine, "tsv": tsv.combine, "iso": iso.combine, "k_lora": k_lora.combine,
}  # fmt: skip

DENSITY = {"ties": 0.2, "dare": 0.5, "della": 0.5, "magnitude": 0.5}
"""The share of entries that a method keeps when nothing is said. TIES' is its paper's; the random ones would drop more
in a large matrix than a small core can spare."""

ONLY_TWO = {"slerp"}
"""Methods for two LoRAs and no more."""
