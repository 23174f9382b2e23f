"""Parts of a picture, by masks: what each mask comes to in a latent, and how the answers of several forwards are one.

Where masks do not meet, each place has the answer of one forward alone. Where they do, or are grey, answers are mixed
by their shares, which sum to 1; what no mask covers has the answer without any LoRA that has a mask. ComfyUI mixes
prompts with masks and default prompts in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from ..nested_hash import bytes_of

MASKS = 16  # that a stack may have
_SOLID = 1 - 1e-6
_SEEN = 0.005  # of the picture


@dataclass(frozen=True)
class Region:
    """A mask, (count, height, width), fp32 in 0..1, with one picture for all of a batch or one for each, or one for
    each frame of a video. Regions are the same when their masks are; `name` is what people read."""

    digest: str
    name: str = field(compare=False)
    mask: Tensor = field(compare=False, repr=False)

    @classmethod
    def of(cls, mask: Tensor, number: int) -> Region:
        """Return the region of a mask of ComfyUI, (height, width) or (count, height, width); the other side of it where
        its number is negative. Raises ValueError for anything else."""
        name = f"mask {abs(number)}"
        if mask.ndim == 2:
            mask = mask[None]
        if mask.ndim != 3 or not mask.numel():
            raise ValueError(f"{name} has the shape {tuple(mask.shape)}, but a mask is (count, height, width); "
                             "connect a MASK")  # fmt: skip
        mask = mask.detach().to("cpu", torch.float32)
        if not mask.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values; make it again")
        mask = mask.clamp(0.0, 1.0)
        mask, name = (1 - mask, f"outside {name}") if number < 0 else (mask, name)
        digest = hashlib.sha256(repr(tuple(mask.shape)).encode())
        digest.update(bytes_of(mask))
        return cls(digest.hexdigest(), name, mask)

    @property
    def share(self) -> float:
        """Return how much of the picture it is, in 0..1."""
        return float(self.mask.mean())


def regions_of(numbers: Sequence[int], masks: Mapping[int, Tensor]) -> dict[int, Region]:
    """Return the region of each number of a row. Raises ValueError for a mask that is not there, by `check_masks`."""
    check_masks(numbers, masks)
    return {number: Region.of(masks[abs(number)], number) for number in dict.fromkeys(numbers)}


def check_masks(numbers: Sequence[int], connected: Mapping[int, object]) -> None:
    """Raises ValueError when a row names a mask that is not connected."""
    missing = [abs(number) for number in numbers if abs(number) not in connected]
    if missing:
        there = ", ".join(f"mask{number}" for number in sorted(connected)) or "no mask"
        raise ValueError(
            f"a row has mask={missing[0]}, but mask{missing[0]} is not connected ({there} is); connect it, or take the "
            "mask out of the row"
        )


def check_places(region: Region, latent: Sequence[int]) -> None:
    """Raises ValueError when a mask cannot lie on a latent of that shape, (batch, channels, [frames,] height, width),
    because it has no places, or other proportions."""
    if len(latent) not in (4, 5) or latent[-1] * latent[-2] == 1:
        raise ValueError(
            f"a LoRA has {region.name}, but this model draws nothing that has places (its latent is {tuple(latent)}); "
            "take the mask out of its row"
        )
    (height, width), (rows, columns) = region.mask.shape[1:], latent[-2:]
    if not columns / (rows + 1) <= width / height <= (columns + 1) / rows:
        raise ValueError(
            f"{region.name} is {width} x {height}, but the picture has other proportions, {columns} x {rows} in the "
            "latent; draw the mask on a picture of the size that is drawn"
        )


def laid(region: Region, latent: Sequence[int], frames_each: int = 1) -> Tensor:
    """Return a mask on the places of a latent, (batch, channels, [frames,] height, width), of which one frame stands
    for `frames_each` of the video but the first: as (batch or 1, 1, [frames or 1,] height, width), each place with the
    mean of what the mask has there. Raises ValueError as `check_places`, and when the count of masks is another."""
    check_places(region, latent)
    mask = functional.interpolate(region.mask[:, None], size=tuple(latent[-2:]), mode="area")
    count, batch = len(mask), latent[0]
    if len(latent) == 4:
        if count not in (1, batch):
            raise ValueError(
                f"{region.name} has {count} pictures, but the batch has {batch}; give one, or one for each"
            )
        return mask
    frames = latent[2]
    if count == (frames - 1) * frames_each + 1 and count != frames:
        later = mask[1:].unflatten(0, (-1, frames_each)).mean(dim=1)
        mask = torch.cat([mask[:1], later])
    elif count not in (1, frames):
        whole = (frames - 1) * frames_each + 1
        raise ValueError(f"{region.name} has {count} pictures, but the video has {whole} frames ({frames} in the "
                         "latent); give one for all of it, or one for each frame")  # fmt: skip
    return mask.transpose(0, 1)[None]


def shares(masks: Sequence[Tensor]) -> list[Tensor]:
    """Return how much each mask has of each place, and last what they leave: they sum to 1 everywhere."""
    total = sum(masks[1:], masks[0])
    over = total.clamp(min=1.0)
    return [*(mask / over for mask in masks), (1 - total).clamp(min=0.0)]


def costs(regions: Sequence[Region]) -> list[str]:
    """Return sentences: how many forwards a step has, which masks are empty, and where two meet."""
    full = [region for region in regions if region.mask.any()]
    rest = not full or not leave_nothing(full)
    said = []
    if (count := len(full) + rest) > 1:
        each = f"{len(full)} for masks, 1 for the rest" if rest else "one for each mask"
        said.append(f"{count} forwards in each step instead of 1 ({each}): sampling takes about {count} times as long")
    said += [f"{region.name} is empty: its LoRAs have no effect" for region in regions if region not in full]
    meeting = ((one.name, other.name, met(one, other)) for one, other in combinations(full, 2))
    return said + [
        f"{one} and {other} share {100 * part:.0f} % of the picture: there the picture is a mix of both, half and half"
        for one, other, part in meeting if part > _SEEN
    ]  # fmt: skip


def leave_nothing(regions: Sequence[Region]) -> bool:
    """Return whether masks of one size cover all of the picture."""
    if len({region.mask.shape for region in regions}) != 1:
        return False
    return bool((torch.stack([region.mask for region in regions]).sum(dim=0) >= _SOLID).all())


def met(one: Region, other: Region) -> float:
    """Return the part of the picture where two masks both hold more than half, in 0..1."""
    first, second = (region.mask.amax(0)[None, None] for region in (one, other))
    second = functional.interpolate(second, size=first.shape[-2:], mode="area")
    return float(((first > 0.5) & (second > 0.5)).float().mean())
