"""One rank and one alpha for all layers that a reader gives the same: smaller ones are filled up with zeros.

Of a file without alphas diffusers before August 2026 (huggingface/diffusers#14409) takes one for each network, the rank
of its first layer, and applies every layer of another rank at another strength. Of kohya files it loses the alphas of
single layers of CLIP, with transformers 5. Where all are alike there is nothing to get wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch.nn.functional import pad

from ..low_rank import LowRank

_TEXT = re.compile(r"lora_te\d*_")


def network_of(style: str, name: str) -> str:
    """Return what of a file the layer of that name shares its rank and alpha with; empty where each has its own."""
    if style == "peft":
        return name.partition(".")[0]
    found = _TEXT.match(name) if style == "kohya" else None
    return found[0] if found else ""


def common_ranks(style: str, layers: Iterable[tuple[str, LowRank]]) -> dict[str, int]:
    """For each network whose layers are not alike, the rank that all of them have to get. `layers` by their names in
    the file."""
    found: dict[str, set[tuple[int, float]]] = {}
    for name, layer in layers:
        if network := network_of(style, name):
            rank = possible_rank(layer)
            found.setdefault(network, set()).add((rank, rank if style == "peft" else layer.scaling * rank))
    return {network: max(rank for rank, _ in kinds) for network, kinds in found.items() if len(kinds) > 1}


def possible_rank(layer: LowRank) -> int:
    """Return the rank without what a weight of that shape cannot have."""
    return min(layer.rank, layer.lora_B.shape[0], layer.lora_A.shape[1])


def filled(layer: LowRank, rank: int) -> LowRank:
    """Return the same correction with that rank and an alpha equal to it; as it is for rank 0."""
    if not rank:
        return layer
    layer, missing = unscaled(layer), rank - layer.rank
    down, up = pad(layer.lora_A, (0, 0, 0, missing)), pad(layer.lora_B, (0, missing))
    return replace(layer, lora_A=down, lora_B=up, alpha=float(rank))


def zeros(layer: LowRank, rank: int) -> int:
    """Return how many numbers `filled` adds."""
    return max(rank - possible_rank(layer), 0) * (layer.lora_A.shape[1] + layer.lora_B.shape[0])


def unscaled(layer: LowRank) -> LowRank:
    """Return the same correction with alpha = rank."""
    scaled = layer.lora_B.to(torch.promote_types(layer.lora_B.dtype, torch.float32)) * layer.scaling
    return replace(layer, lora_B=scaled, alpha=float(layer.rank))
