"""DoRA: a correction of the direction of a weight, and the magnitudes that its rows or columns are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ..low_rank import LowRank
from ..stored import stored
from .correction import USUAL, Correction, like, norm


@stored("update magnitude axis norm_of", tag="DoRA")
@dataclass(frozen=True, eq=False)
class DoRA(Correction):
    """`W' = m * (W + delta_W) / norm` (Liu et al. 2024, arXiv:2402.09353).

    `update` gives delta_W. `magnitude` m is 1-D: one number per output row (`axis` 0) or per input column (`axis` 1,
    the paper's). `norm_of` tells what the norms of those rows or columns are taken of: "sum" is W + delta_W, as in the
    paper, PEFT and LyCORIS; "base" is W alone, which is what ComfyUI does with a `dora_scale` per row.
    Strength s gives `W + s * (W' - W)`; the update inside always counts in full.
    """

    update: LowRank | Correction
    magnitude: Tensor
    axis: Literal[0, 1] = 0
    norm_of: Literal["base", "sum"] = "sum"

    kind = "DoRA"
    depends_on_weight = True

    def __post_init__(self) -> None:
        if self.magnitude.ndim != 1 or self.axis not in (0, 1) or self.norm_of not in ("base", "sum"):
            raise ValueError(
                f"magnitude {tuple(self.magnitude.shape)}, axis {self.axis}, norm_of {self.norm_of!r}; "
                "expected one dimension, 0 or 1, and base or sum"
            )

    @classmethod
    def from_scale(cls, update: LowRank | Correction, dora_scale: Tensor) -> DoRA:
        """From a `dora_scale` as ComfyUI reads it: (out, 1, ...) per row, or (1, in, 1, ...) per column; or flat, of
        the side of the weight that is as long: of a square one the columns, as InvokeAI takes it. ComfyUI applies no
        flat one per row, so that it means what the paper and LyCORIS say.
        """
        flat, axis = dora_scale.ndim == 1, scale_axis(tuple(dora_scale.shape), update.shape)
        return cls(update, dora_scale.flatten(), axis, "sum" if axis or flat else "base")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.update.shape

    @property
    def rank(self) -> int:
        return getattr(self.update, "rank", 0)

    def fits(self, weight: tuple[int, ...]) -> bool:
        update_fits = _fits(self.update, weight) if isinstance(self.update, LowRank) else self.update.fits(weight)
        return update_fits and len(weight) > 1 and self.magnitude.numel() == weight[self.axis]

    def reach(self) -> tuple[float, float]:
        """Where norms are those of W alone, its rows are taken for as long as those of most weights."""
        lengths = norm(self.magnitude)
        if self.norm_of == "sum":
            return lengths, 1.0
        row = USUAL * (prod(self.shape) / self.shape[0]) ** 0.5
        return lengths + float(self.magnitude.abs().max()) * reach_of(self.update)[0] / row, 1.0

    def difference(self, weight: Tensor) -> Tensor:
        return self._whole(weight) - weight

    def _changed(self, weight: Tensor, strength: float) -> Tensor:
        return torch.lerp(weight, self._whole(weight), strength)

    def _whole(self, weight: Tensor) -> Tensor:
        merged = weight + self._delta(weight).reshape(weight.shape)
        norm = norms(merged if self.norm_of == "sum" else weight, self.axis) + torch.finfo(weight.dtype).eps
        return merged.mul_(along(like(self.magnitude, weight) / norm, self.axis, weight.ndim))

    def relative_to(self, norm_of: Literal["base", "sum"], weight: Tensor) -> DoRA:
        """The same change of this `weight` (fp32 or fp64), with magnitudes for the other norms."""
        if norm_of == self.norm_of:
            return self
        base, merged = norms(weight, self.axis), norms(weight + self._delta(weight).reshape(weight.shape), self.axis)
        ratio = merged / base if norm_of == "sum" else base / merged
        magnitude = like(self.magnitude, weight) * ratio
        return replace(self, magnitude=magnitude.to(self.magnitude), norm_of=norm_of)

    def _delta(self, weight: Tensor) -> Tensor:
        if isinstance(self.update, LowRank):
            return self.update.to(weight.device, weight.dtype).delta_weight()
        return self.update.difference(weight)


def scale_axis(shape: Sequence[int], weight: Sequence[int]) -> Literal[0, 1]:
    """0 when a `dora_scale` of that shape has a number for each of a weight's rows, 1 when for each column."""
    if len(shape) == 1 and shape[0] == (*weight, 0)[1]:
        return 1
    return 0 if shape[0] == weight[0] else 1


def norms(weight: Tensor, axis: int) -> Tensor:
    """Euclidean norm of each row (axis 0) or input column (axis 1) of a weight, kernels included; 1-D."""
    return torch.linalg.vector_norm(weight, dim=[index for index in range(weight.ndim) if index != axis])


def along(values: Tensor, axis: int, dimensions: int) -> Tensor:
    """`values` shaped to be multiplied along that axis."""
    return values.reshape([-1 if index == axis else 1 for index in range(dimensions)])


def reach_of(change: LowRank | Correction) -> tuple[float, float]:
    """As `Correction.reach`."""
    if isinstance(change, LowRank):
        return abs(change.scaling) * norm(change.lora_A) * norm(change.lora_B), 0.0
    return change.reach()


def _fits(update: LowRank, weight: tuple[int, ...]) -> bool:
    return update.shape[0] == weight[0] and update.lora_A.shape[1] == torch.Size(weight[1:]).numel()
