"""Merging: the exact sum, and methods that combine what several LoRAs do to one layer, one file each.

To add a method, add its file, a row here and one in the help page; the tests name what is still missing. Names and
their order are those of the node's list and of workflows: a new one comes last.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import dare, della, iso, k_lora, karcher, magnitude, null_space, orthogonal, slerp, ties, tsv
from .method import MergeMethod

SUM, AUTO = "sum", "auto"

METHODS: Mapping[str, MergeMethod] = {
    "ties": MergeMethod(ties.combine, density=0.2),  # its paper's
    "dare": MergeMethod(dare.combine, density=0.5, by_chance=True),  # a small core can spare no more
    "della": MergeMethod(della.combine, density=0.5, by_chance=True),
    "magnitude": MergeMethod(magnitude.combine, density=0.5),
    "slerp": MergeMethod(slerp.combine, only_two=True),
    "karcher": MergeMethod(karcher.combine),
    "null_space": MergeMethod(null_space.combine),
    "orthogonal": MergeMethod(orthogonal.combine),
    "tsv": MergeMethod(tsv.combine),
    "iso": MergeMethod(iso.combine),
    "k_lora": MergeMethod(k_lora.combine),
}
