"""Suggests the strength to use a LoRA at: how much of its concept is there, and how much else changes, from 0 to 1.25.

The concept is what the LoRA gains on held-out pictures, in loss and in the guided answer: whichever keeps less, or the
loss alone where guidance exaggerates so much that the answer gains nothing. What else changes is the network's answer
on neutral captions at almost noise, root mean square: on the demo base its share of that at strength 1 is within 0.1 of
the share by which unrelated pictures change when they are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import sqrt
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from . import guided, validation
from .config import TrainConfig
from .objective import Denoiser
from .sample import Sample
from .state import TrainState
from .steps import brought
from .validation import Draw

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
KEPT = 0.98  # of the concept at strength 1 that a suggestion keeps
MOST_PICTURES, MOST_CAPTIONS = 4, 8


@dataclass(frozen=True)
class StrengthPoint:
    """Says what there is at a strength, as shares of what there is at 1."""

    strength: float
    concept: float
    leak: float


@dataclass(frozen=True)
class StrengthCurve:
    """Holds a point for each of `STRENGTHS`, after that of 0; none where the LoRA gains nothing at strength 1.
    `exaggerated` tells that its guided answer at 1 is no nearer to the pictures than the base model's."""

    points: tuple[StrengthPoint, ...]
    pictures: int
    captions: int
    exaggerated: bool = False

    def suggested(self) -> StrengthPoint | None:
        """Return the smallest strength, in twentieths, that keeps `KEPT` of the concept, between the measured points by
        straight lines; None without points."""
        if not self.points:
            return None
        return next(found for i in range(1, 21) if (found := self._at(i / 20)).concept >= KEPT)

    def sentence(self) -> str:
        found = self.suggested()
        if found is None:
            return (
                f"No strength is suggested: at 1 the LoRA is no nearer to {_counted(self.pictures)} held out than the "
                "base model; train longer or at a lower learning rate"
            )
        return (
            f"Use it at {found.strength:g}: {100 * min(found.concept, 1):.0f} % of what it learned, "
            f"{100 * found.leak:.0f} % of what else it changes"
            + ("; guidance exaggerates it, so lower the CFG" if self.exaggerated else "")
        )

    def _at(self, strength: float) -> StrengthPoint:
        low, high = next((a, b) for a, b in zip(self.points, self.points[1:], strict=False) if strength <= b.strength)
        part = (strength - low.strength) / (high.strength - low.strength)
        concept, leak = (a + part * (b - a) for a, b in ((low.concept, high.concept), (low.leak, high.leak)))
        return StrengthPoint(strength, concept, leak)


@dataclass(frozen=True)
class Looked:
    """Holds what was seen of a LoRA: how far it is from its concept, the measure that counts first, and its answers on
    neutral captions."""

    far: tuple[float, ...]
    answers: Sequence[Tensor]


@dataclass(frozen=True)
class Ends:
    """Tells what there is as shares of what `full` has beyond `base`. A measure by which that is no nearer to the
    concept does not count."""

    base: Looked
    full: Looked

    @property
    def gains(self) -> list[float]:
        return [before - after for before, after in zip(self.base.far, self.full.far, strict=True)]

    @property
    def apart(self) -> bool:
        """Return whether there is anything to have shares of."""
        return self.gains[0] > 0 and apart(self.full.answers, self.base.answers) > 0

    def point(self, strength: float, own: Looked) -> StrengthPoint:
        measured = zip(self.base.far, own.far, self.gains, strict=True)
        concept = min((before - after) / gain for before, after, gain in measured if gain > 0)
        leak = apart(own.answers, self.base.answers) / apart(self.full.answers, self.base.answers)
        return StrengthPoint(strength, concept, leak)


def curve_of(found: Mapping[float, Looked], pictures: int, captions: int) -> StrengthCurve:
    """Return the curve of what was seen at 0 and at each of `STRENGTHS`."""
    ends = Ends(found[0.0], found[1.0])
    if not ends.apart:
        return StrengthCurve((), pictures, captions)
    points = tuple(ends.point(*each) for each in found.items())
    return StrengthCurve(points, pictures, captions, exaggerated=min(ends.gains) <= 0)


def few(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return `MOST_CAPTIONS` of the prompts at most, spread over all that are not empty."""
    found = tuple(filter(None, prompts))
    count = min(MOST_CAPTIONS, len(found))
    return tuple(found[number * len(found) // count] for number in range(count))


@dataclass(frozen=True)
class Scale:
    """Looks at the LoRA of a run, whose network is attached, at any strength. `tick` is called between forwards and may
    raise."""

    config: TrainConfig
    state: TrainState
    denoiser: Denoiser
    samples: Sequence[Sample]
    cfg: float
    tick: Callable[[], None]

    def curve(self, draws: Sequence[Draw], neutral: Sequence[tuple[int, Any]]) -> StrengthCurve:
        """Measure every strength on the pictures of `draws`, `MOST_PICTURES` at most, and on `neutral`: indices of
        pictures, each with a neutral condition for its latent."""
        shown = list(dict.fromkeys(draw.picture for draw in draws))[:MOST_PICTURES]
        draws, neutral = [draw for draw in draws if draw.picture in shown], neutral[:MOST_CAPTIONS]
        found = {strength: self._looked(strength, draws, neutral) for strength in (0.0, *STRENGTHS)}
        return curve_of(found, len(shown), len(neutral))

    def _looked(self, strength: float, draws: Sequence[Draw], neutral: Sequence[tuple[int, Any]]) -> Looked:
        """By the mean loss, and by the mean error of the guided answer."""
        of = self.config, self.state, self.denoiser, self.samples, not strength, self.tick
        look = partial(guided.errors, cfg=self.cfg, tick=self.tick)
        with self._at(strength):
            losses = validation.measure(draws, *of)
            errors = validation.measure(guided.plan(draws), *of, look)
            return Looked((mean(losses), mean(errors)), [self._answer(*each) for each in neutral])

    def _answer(self, picture: int, condition: Any) -> Tensor:
        x0 = self.samples[picture].latent[None]
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(picture))
        x0, noise, _, sigma = brought(
            [x0, noise, None, self.denoiser.sigma(torch.tensor([guided.START]))], self.state.factors.flat.device
        )
        with torch.no_grad(), self.state.judged():
            answer = self.denoiser.denoised(self.denoiser.noised(x0, noise, sigma), sigma, [condition])
        self.tick()
        return answer.float().cpu()

    @contextmanager
    def _at(self, strength: float) -> Iterator[None]:
        factors = self.state.factors
        with factors.at(strength) if strength else factors.silence():
            yield


def apart(answers: Sequence[Tensor], base: Sequence[Tensor]) -> float:
    """Return the root mean square difference of answers."""
    return sqrt(mean(float((a - b).square().mean()) for a, b in zip(answers, base, strict=True)))


def _counted(pictures: int) -> str:
    return f"the {pictures} pictures" if pictures > 1 else "the picture"
