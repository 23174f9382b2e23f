"""LoRAs that are on in the steps of a run, and in nothing that is looked at or kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..low_rank import LowRank
from ..swap import swapped
from ..weight_sum import concatenated
from .branch import Branch


class Assisting:
    """Frozen paths beside layers, for `inject.attached`; silent but inside `on`.

    `terms` are the corrections of each layer, whose sum is one path, kept in fp32 on `device`. They are to be attached
    after what is trained: the magnitudes of DoRA then are of the layer without them, as where the LoRA is used.
    """

    def __init__(
        self, terms: Mapping[str, Sequence[LowRank]], modules: Mapping[str, nn.Module], device: torch.device
    ):  # fmt: skip
        self.branches: dict[str, Branch] = {}
        for name, own in terms.items():
            lora_A, lora_B = concatenated(own, torch.float32, device)
            self.branches[name] = Branch(lora_A, lora_B, float(len(lora_A)), modules[name])
            self.branches[name].muted = True

    @contextmanager
    def on(self) -> Iterator[None]:
        with swapped((branch, "muted", False) for branch in self.branches.values()):
            yield
