"""Suggests the strength to use a LoRA at: how much of its concept is there, and how much else changes, from 0 to 1.25.

The concept is what the LoRA gains on held-out pictures, in loss and in the guided answer: whichever keeps less. What
else changes is the network's answer on neutral captions at almost noise, root mean square: on the demo base its share
of that at strength 1 is within 0.1 of the share by which unrelated pictures change when they are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """Holds a point for each of `STRENGTHS`, after that of 0; none where the LoRA gains nothing at strength 1."""

    points: tuple[StrengthPoint, ...]
    pictures: int
    captions: int

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
        )

    def _at(self, strength: float) -> StrengthPoint:
        low, high = next((a, b) for a, b in zip(self.points, self.points[1:], strict=False) if strength <= b.strength)
        part = (strength - low.strength) / (high.strength - low.strength)
        concept, leak = (a + part * (b - a) for a, b in ((low.concept, high.concept), (low.leak, high.leak)))
        return StrengthPoint(strength, concept, leak)


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
        (base_loss, base_error, base), (loss, error, full) = found[0.0], found[1.0]
        gains, leak = (base_loss - loss, base_error - error), _apart(full, base)
        if min(gains) <= 0 or not leak:
            return StrengthCurve((), len(shown), len(neutral))
        points = [
            StrengthPoint(
                strength,
                min((base_loss - own_loss) / gains[0], (base_error - own_error) / gains[1]),
                _apart(answers, base) / leak,
            )
            for strength, (own_loss, own_error, answers) in found.items()
        ]
        return StrengthCurve(tuple(points), len(shown), len(neutral))

    def _looked(
        self, strength: float, draws: Sequence[Draw], neutral: Sequence[tuple[int, Any]]
    ) -> tuple[float, float, list[Tensor]]:
        """The mean loss, the mean error of the guided answer, and the answers on neutral captions."""
        of = self.config, self.state, self.denoiser, self.samples, not strength, self.tick
        look = partial(guided.errors, cfg=self.cfg, tick=self.tick)
        with self._at(strength):
            losses = validation.measure(draws, *of)
            errors = validation.measure(guided.plan(draws), *of, look)
            return mean(losses), mean(errors), [self._answer(*each) for each in neutral]

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


def _apart(answers: Sequence[Tensor], base: Sequence[Tensor]) -> float:
    return sqrt(mean(float((a - b).square().mean()) for a, b in zip(answers, base, strict=True)))


def _counted(pictures: int) -> str:
    return f"the {pictures} pictures" if pictures > 1 else "the picture"
