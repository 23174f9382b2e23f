"""A plain LoRA of a weight that it first makes larger, as control LoRAs for FLUX.1 do with their input layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..low_rank import LowRank
from ..stored import stored
from .correction import Correction


@stored("update", tag="Padded")
@dataclass(frozen=True, eq=False)
class Padded(Correction):
    """`W' = pad(W) + strength * delta_W`: zeros are added at the end of each dimension, up to the shape of delta_W."""

    update: LowRank

    kind = "widening LoRA"
    depends_on_weight = True
    TAKES_DORA = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.update.shape

    @property
    def new_shape(self) -> tuple[int, ...]:
        return self.shape

    def fits(self, weight: tuple[int, ...]) -> bool:
        return len(weight) == len(self.shape) and all(old <= new for old, new in zip(weight, self.shape, strict=True))

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        ends = [(0, new - old) for old, new in zip(weight.shape, self.shape, strict=True)]
        wide = torch.nn.functional.pad(weight, [amount for pair in reversed(ends) for amount in pair])
        return self.update.to(weight.device, weight.dtype).add_to_(wide.contiguous(), strength)
