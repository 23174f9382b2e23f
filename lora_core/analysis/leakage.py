"""Tells how much a LoRA changes what it was not meant to change: the same noise and prompt, base model against LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..drawing.measure import Measure, bars
from ..stored import as_dict, stored

CONCEPT, CLASS, NEUTRAL = "with the trigger", "without the trigger", "neutral"
_MEASURES = ("latent", "pixels", "structure")
_LUMA = (0.299, 0.587, 0.114)
_WINDOW, _SCALES, _C1, _C2 = 7, 3, 0.01**2, 0.03**2


@stored("latent pixels structure")
@dataclass(frozen=True)
class PictureChange:
    """From base to LoRA: `latent` is the norm of the difference of the finished latents over the base's norm, `pixels`
    the mean absolute difference of pictures in 0..1, `structure` 1 - SSIM of their brightness (0 the same, 1 nothing in
    common), averaged over scales 1, 1/2 and 1/4."""

    latent: float
    pixels: float
    structure: float


@dataclass(frozen=True)
class Leakage:
    """The mean change of each group of prompts, by its name, over `counts` pictures."""

    changes: dict[str, PictureChange]
    counts: dict[str, int]

    def ratio(self, group: str, measure: str = "latent") -> float:
        """The group's change over that with the trigger; 0 when neither changes, infinity when only the group does."""
        with_it, other = (getattr(self.changes[name], measure) for name in (CONCEPT, group))
        if not with_it:
            return float("inf") if other else 0.0
        return other / with_it

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Everything measured, for a machine to read; a ratio without an end is None, as JSON has no word for it."""
        found = {}
        for name, change in self.changes.items():
            ratios = {f"{measure}_ratio": _finite(self.ratio(name, measure)) for measure in _MEASURES}
            found[name] = {"pictures": self.counts[name], **as_dict(change), **ratios}
        return found

    def report(self) -> str:
        """Return what the figures say in a sentence for each group, and the figures as lines."""
        lines = [self._sentence(name) for name in self.changes if name != CONCEPT]
        lines.append("Change from the base model to the LoRA, same noise (latent, pixels, structure):")
        lines += [
            f"  {name} (pictures: {self.counts[name]}): {each.latent:.4f}, {each.pixels:.4f}, {each.structure:.4f}"
            for name, each in self.changes.items()
        ]
        return "\n".join(lines)

    def measure(self) -> Measure:
        """Return the same for the front end."""
        figures = [(f"{name} ({self.counts[name]})", list(as_dict(c).values())) for name, c in self.changes.items()]
        table = bars("Change from the base model to the LoRA", "prompts (pictures)", _MEASURES, figures)
        said = [self._sentence(name) for name in self.changes if name != CONCEPT]
        return Measure(said[0] if said else "", " ".join(said[1:]), (table,))

    def _sentence(self, group: str) -> str:
        prompts = "prompts without the trigger" if group == CLASS else "neutral prompts"
        if not any(as_dict(self.changes[group]).values()):
            return f"No leakage: {prompts} are not changed at all."
        if not self.changes[CONCEPT].latent:
            return f"Check the trigger: {prompts} are changed, but those with the trigger are not."
        shares = [
            f"{100 * self.ratio(group, measure):.0f}% ({measure})" for measure in ("latent", "pixels", "structure")
        ]
        return f"Leakage: {prompts} change by {', '.join(shares)} of the change with the trigger."


def change(base: Tensor, lora: Tensor, base_picture: Tensor, lora_picture: Tensor) -> PictureChange:
    """Measure the change of one sample: its latents are of any one shape, its pictures (height, width, 3) in 0..1."""
    base, lora = base.double(), lora.double()
    latent = float((lora - base).norm() / base.norm()) if base.any() else float((lora - base).norm() > 0)
    pixels = float((lora_picture.double() - base_picture.double()).abs().mean())
    return PictureChange(latent, pixels, 1 - similarity(base_picture, lora_picture))


def measured(groups: Mapping[str, Sequence[PictureChange]]) -> Leakage:
    """The means. Raises ValueError when there is nothing with the trigger to compare with."""
    if not groups.get(CONCEPT):
        raise ValueError("leakage needs prompts with the trigger, but there is none; write one in prompts")
    means = {name: mean(found) for name, found in groups.items() if found}
    return Leakage(means, {name: len(groups[name]) for name in means})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def mean(changes: Sequence[PictureChange]) -> PictureChange:
    """Return the mean of each figure."""
    return PictureChange(*(sum(getattr(each, name) for each in changes) / len(changes) for name in _MEASURES))


def similarity(one: Tensor, other: Tensor) -> float:
    """SSIM (Wang et al. 2004) of the brightness of two pictures (height, width, 3) in 0..1, with a flat window of 7
    pixels, averaged over scales 1, 1/2 and 1/4."""
    x, y = (_brightness(picture) for picture in (one, other))
    found = []
    for _ in range(_SCALES):
        if min(x.shape[-2:]) < _WINDOW:
            break
        found.append(float(_ssim(x, y)))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    if not found:
        raise ValueError(f"pictures of {tuple(one.shape[:2])} are too small to compare; {_WINDOW} pixels are needed")
    return sum(found) / len(found)


def _brightness(picture: Tensor) -> Tensor:
    return (picture.double() @ torch.tensor(_LUMA, dtype=torch.float64))[None, None]


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, _WINDOW, 1)

    mx, my = mean(x), mean(y)
    vx, vy = (mean(x * x) - mx * mx).clamp(min=0), (mean(y * y) - my * my).clamp(min=0)
    together = mean(x * y) - mx * my
    score = (2 * mx * my + _C1) * (2 * together + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return score.mean()
