"""Merging: the exact sum, and methods that combine what several LoRAs do to one layer, one file each.

To add a method, add its file, a row here and one in the help page; the tests name what is still missing. Names and
their order are those of the node's list and of workflows: a new one comes last.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import dare, della, iso, k_lora, karcher, magnitude, null_space, orthogonal, slerp, ties, tsv
from .method import Method

SUM, AUTO = "sum", "auto"

METHODS: Mapping[str, Method] = {
    "ties": Method(ties.combine, density=0.2),  # its paper's
    "dare": Method(dare.combine, density=0.5, by_chance=True),  # a small core cannot spare more, as large matrices can
    "della": Method(della.combine, density=0.5, by_chance=True),
    "magnitude": Method(magnitude.combine, density=0.5),
    "slerp": Method(slerp.combine, only_two=True),
    "karcher": Method(karcher.combine),
    "null_space": Method(null_space.combine),
    "orthogonal": Method(orthogonal.combine),
    "tsv": Method(tsv.combine),
    "iso": Method(iso.combine),
    "k_lora": Method(k_lora.combine),
}
