"""Measures how a slider answers to its strength: how far it moves the network's answer the way it was asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .inject import Factors
from .objective import Denoiser, per_sample
from .sample import Sample
from .slider import answers
from .state import TrainState
from .steps import brought
from .validation import Draw, noises_of

STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
MOST = 16  # noises that are looked at


@dataclass(frozen=True)
class Move:
    """How far an answer has moved, as shares of what is asked for at strength 1: the way it is asked to, and aside."""

    along: float
    aside: float


@dataclass(frozen=True)
class Response:
    """Holds the move at each of `STRENGTHS`, and how many pictures it was measured on."""

    moves: Mapping[float, Move]
    pictures: int

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
                f"The slider does not move the way it was asked to: {full.along:+.2f} of it at strength 1; train longer "
                "or at a lower learning rate"
            )
        moved = ", ".join(f"{strength:+g}: {move.along:+.2f}" for strength, move in self.moves.items())
        return (
            f"The slider is {100 * self.symmetric:.0f} % symmetric and {100 * self.even:.0f} % even over strengths -2 "
            f"to 2. It moves the model's answer, as shares of what was asked at 1, {moved}; aside {full.aside:.2f} at 1 "
            f"and {twice.aside:.2f} at 2"
        )


def measured(
    draws: Sequence[Draw], state: TrainState, denoiser: Denoiser, samples: Sequence[Sample], guidance: float,
    tick: Callable[[], None],
) -> Response:  # fmt: skip
    """Measure the factors that would be saved now on the first `MOST` draws, whose samples have conditions as `slider.Told`.
    `tick` is called after each and may raise."""
    draws, sums = draws[:MOST], torch.zeros(len(STRENGTHS), 2, dtype=torch.float64)
    asked = 0.0
    with torch.no_grad(), state.judged():
        for draw in draws:
            changes, apart = _looked(draw, state.factors, denoiser, samples[draw.picture], guidance)
            sums += torch.stack([changes @ apart, changes.square().sum(1)], 1)
            asked += float(apart.square().sum())
            tick()
    along, square = (sums / max(asked, 1e-30)).unbind(1)
    aside = (square - along.square()).clamp(min=0).sqrt()
    moves = {s: Move(*each) for s, *each in zip(STRENGTHS, along.tolist(), aside.tolist(), strict=True)}
    return Response(moves, len({draw.picture for draw in draws}))


def _looked(
    draw: Draw, factors: Factors, denoiser: Denoiser, sample: Sample, guidance: float
) -> tuple[Tensor, Tensor]:
    """Return by how much the network's output changes at each of `STRENGTHS`, (strengths, values), and by how much it
    was asked to at 1, (values,), in fp64 on the CPU."""
    x0, sigma = sample.latent[None], denoiser.sigma(torch.tensor([draw.u]))
    x0, noise, _, sigma = brought([x0, noises_of([draw], x0.shape), None, sigma], factors.flat.device)
    x_t, told = denoiser.noised(x0, noise, sigma), [sample.condition]
    base = answers(denoiser, factors, x_t, sigma, told, guidance)
    scale, found = per_sample(denoiser.output_scale(sigma), x0.ndim), []
    for strength in STRENGTHS:
        with factors.at(strength):
            found.append((denoiser.denoised(x_t, sigma, [sample.condition[0]]) - base.neutral) / scale)
    return torch.cat(found).flatten(1).double().cpu(), (base.apart / scale).flatten().double().cpu()
