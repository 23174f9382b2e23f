"""Tells how much of each layer is kept: by rank, by energy, by the values themselves, or by one size for all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..low_rank import fewest

_BYTES = 2  # of a number in fp16 and bf16
_HEADER = 3 * 100  # bytes that three tensors of a layer take in a file's header, beside their names


@dataclass(frozen=True)
class Limits:
    """`rank` is the most for a layer (0: any), `energy` in (0, 1] the share of each layer's squared norm that is kept
    at least, where `rank` lets it; `megabytes` (1e6 bytes) the most that all layers together take as fp16 (0: any),
    with `header` bytes of text beside them in the file. `ratio` is the most that a layer's largest singular value may
    be of its smallest (0: any) and `share` in (0, 1] that of the sum of its values which is kept: sv_ratio and
    sv_cumulative of sd-scripts' resize, without the value more that these keep. `conv_rank` takes the place of `rank`
    for convolutions that look at more than one place (0: it does not).
    """

    rank: int = 0
    energy: float = 1.0
    megabytes: float = 0.0
    header: int = 0
    ratio: float = field(default=0.0, kw_only=True)
    share: float = field(default=1.0, kw_only=True)
    conv_rank: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 < self.energy <= 1 or self.megabytes < 0:
            raise ValueError(
                f"rank is {self.rank}, energy is {self.energy:g}, size_mb is {self.megabytes:g}; rank and size_mb must "
                "be 0 or more, energy above 0 and at most 1"
            )
        if self.conv_rank < 0 or not 0 < self.share <= 1 or not (self.ratio == 0 or self.ratio >= 1):
            raise ValueError(
                f"conv_rank is {self.conv_rank}, share is {self.share:g}, ratio is {self.ratio:g}; conv_rank must be 0 "
                "or more, share above 0 and at most 1, ratio 0 or at least 1"
            )

    def __bool__(self) -> bool:
        return bool(self.highest or self.conv_rank or self.energy < 1 or self.megabytes or self.ratio or self.share < 1)

    @property
    def highest(self) -> int:
        """Return the highest rank that a layer of any kind may have; 0: any."""
        return max(self.rank, self.conv_rank) if self.rank else 0

    def most(self, sigma: Tensor, spatial: bool = False) -> int:
        """Return how many of these singular values, descending, are kept at most, at least one; `spatial` of a
        convolution that looks at more than one place."""
        rank = self.conv_rank if spatial and self.conv_rank else self.rank
        few = [rank or len(sigma), fewest(sigma, self.energy)]
        if self.ratio:
            few.append(int((sigma * self.ratio >= sigma[0]).sum()))
        if self.share < 1:
            sums = sigma.cumsum(0)
            few.append(int((sums < self.share * sums[-1]).sum()) + 1)
        return min(few)

    def told(self) -> dict[str, float]:
        """Return them by the names that nodes and files give them; those that came later only where they are set."""
        told: dict[str, float] = {"rank": self.rank, "energy": self.energy, "size_mb": self.megabytes}
        told |= {"ratio": self.ratio} if self.ratio else {}
        told |= {"share": self.share} if self.share < 1 else {}
        return told | ({"conv_rank": self.conv_rank} if self.conv_rank else {})


def shared_ranks(
    spectra: Mapping[str, Tensor], widths: Mapping[str, int], limits: Limits, most: Mapping[str, int]
) -> dict[str, int]:
    """Return the ranks of all layers with the smallest error of the whole for that size: each component (sigma^2 of
    energy for out + in numbers) is taken or left by its energy per byte, whichever layer it is of.

    `widths` are out + in, `most` the highest rank of each. A layer may get 0. Raises ValueError when nothing fits.
    """
    names = list(spectra)
    megabytes = limits.megabytes
    room = megabytes * 1e6 - limits.header - sum(_HEADER + 3 * len(name) for name in names)
    kept = [spectra[name][: most[name]] for name in names]
    costs = [widths[name] * _BYTES for name in names]
    owner = torch.cat([torch.full((len(sigma),), index) for index, sigma in enumerate(kept)])
    cost = torch.tensor(costs, dtype=torch.float64)[owner]
    order = (torch.cat(kept).square() / cost).argsort(descending=True, stable=True)
    taken = order[cost[order].cumsum(0) <= room]
    counts = owner[taken].bincount(minlength=len(names)).tolist()
    _fill(counts, kept, costs, room - float(cost[taken].sum()))
    if not any(counts):
        least = 1.05 * (min(costs) + megabytes * 1e6 - room) / 1e6
        raise ValueError(f"size_mb {megabytes:g} is too small for {len(names)} layers; use {least:.2g} or more")
    return dict(zip(names, counts, strict=True))


def _fill(counts: list[int], kept: Sequence[Tensor], costs: Sequence[int], left: float) -> None:
    """Fill the room that is left, too small for the component that was next, with the best that fit."""

    def worth(index: int) -> float:
        return float(kept[index][counts[index]]) ** 2 / costs[index]

    while fits := [i for i, sigma in enumerate(kept) if counts[i] < len(sigma) and costs[i] <= left]:
        best = max(fits, key=worth)
        counts[best] += 1
        left -= costs[best]
