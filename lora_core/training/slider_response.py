"""Measures how a slider answers to its strength: how far it moves the network's answer the way it was asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser

STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
USED_AT = "A slider is for strengths from -2 to 2; the strip of Training Previews shows where pictures change."
Measure = Callable[[Callable[..., Tensor]], list[float]]  # as `tasks.Measure`


class View(NamedTuple):
    """Noisy latents of samples with their conditions, the base's answer to them, and what strength 1 is asked to add to
    that; all shaped like the latents. Changes are compared after division by `scale`, which may be one for each sample.
    """

    x_t: Tensor
    conditions: list[Any]
    base: Tensor
    apart: Tensor
    scale: Tensor | float = 1.0


Views = Callable[..., Sequence[View]]  # of factors, denoiser, x0, noise, sigma and conditions of samples


@dataclass(frozen=True)
class Move:
    """How far an answer has moved, as shares of what is asked for at strength 1: the way it is asked to, and aside."""

    along: float
    aside: float


@dataclass(frozen=True)
class Response:
    """Holds the move at each of `STRENGTHS`."""

    moves: Mapping[float, Move]

    @property
    def even(self) -> float:
        """The smallest step from one strength to the next over the largest, 1 where all are alike; 0 where one goes
        the wrong way."""
        places = {**{strength: move.along for strength, move in self.moves.items()}, 0.0: 0.0}
        steps = [places[b] - places[a] for a, b in pairwise(sorted(places))]
        return max(min(steps), 0.0) / max(*steps, 1e-30)

    @property
    def symmetric(self) -> float:
        """The shorter of the ways to a strength and to its opposite over the longer one, of the pair that is least
        alike; 0 where one goes the wrong way."""
        ways = [sorted((-self.moves[-s].along, self.moves[s].along)) for s in STRENGTHS if s > 0]
        return min(max(short, 0.0) / max(long, 1e-30) for short, long in ways)

    def sentence(self) -> str:
        """Return the verdict with its figures."""
        full, twice = self.moves[1.0], self.moves[2.0]
        if full.along <= 0:
            return (
                f"The slider does not move the way it was asked to: {full.along:+.2f} of it at strength 1; train "
                "longer or at a lower learning rate"
            )
        moved = ", ".join(f"{strength:+g}: {move.along:+.2f}" for strength, move in self.moves.items())
        return (
            f"The slider is {100 * self.symmetric:.0f} % symmetric and {100 * self.even:.0f} % even over strengths -2 "
            f"to 2. It moves the model's answer, as shares of what was asked at 1, {moved}; aside {full.aside:.2f} "
            f"at 1 and {twice.aside:.2f} at 2"
        )


class Looked:
    """Looks at each batch of a measurement once, in which every further one finds the next figure of its samples: the
    square of what is asked for at 1 and, at each of `STRENGTHS`, the product with it and the square of the change; of
    all its `views` together."""

    def __init__(self, views: Views):
        self.views, self.seen = views, list[Tensor]()

    def figures(self, measure: Measure) -> Tensor:
        """Return (figures, draws) in fp64, of whatever batches `measure` has, in the same order each time."""
        found = [measure(partial(self._next, at, count())) for at in range(1 + 2 * len(STRENGTHS))]
        return torch.tensor(found, dtype=torch.float64)

    def _next(self, at: int, batches: Iterator[int], *batch: Any) -> Tensor:
        number = next(batches)
        if not at:
            self.seen.append(self._looked(*batch))
        return self.seen[number][at]

    def _looked(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        views = self.views(factors, denoiser, x0, noise, sigma, conditions)
        return torch.stack([_moved(factors, denoiser, sigma, each) for each in views]).sum(0)


def _moved(factors: Factors, denoiser: Denoiser, sigma: Tensor, view: View) -> Tensor:
    """Return the figures of one view, (figures, batch)."""
    asked, found = (view.apart / view.scale).flatten(1).cpu().double(), []
    for strength in STRENGTHS:
        with factors.at(strength):
            answer = denoiser.denoised(view.x_t, sigma, view.conditions)
        change = ((answer - view.base) / view.scale).flatten(1).cpu().double()
        found += [(change * asked).sum(1), change.square().sum(1)]
    return torch.stack([asked.square().sum(1), *found])


def measured(measure: Measure, views: Views) -> Response:
    """Return the response of factors that are attached, in what `measure` finds of draws of a slider's samples, of
    which each batch is looked at in these views."""
    asked, *found = Looked(views).figures(measure).sum(1).unbind()
    along, square = torch.stack(found).view(-1, 2).div(asked.clamp(min=1e-30)).unbind(1)
    aside = (square - along.square()).clamp(min=0).sqrt()
    return Response({s: Move(*each) for s, *each in zip(STRENGTHS, along.tolist(), aside.tolist(), strict=True)})
