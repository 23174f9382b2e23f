"""Measures how well the concepts of one LoRA are kept apart: how much of a concept is there under another's trigger.

Pictures of each concept are looked at through much noise, where it is still open what they will show. There the loss is
taken under their captions, and under the same with another concept's trigger in its place, or with none. What the LoRA
gains on the base under the same caption, beside what it gains under the right one, is the bleeding: about 0 where a
trigger knows nothing of those pictures, 1 where both triggers mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch

from ..drawing.measure import Cell, Line, Table
from . import validation
from .config import TrainConfig
from .dropout import is_clear
from .objective import Denoiser
from .preserving import OPEN
from .sample import Sample
from .state import TrainState
from .validation import Draw

MOST_CONCEPTS, MOST_PICTURES, LEVELS = 8, 16, 4
NONE = "no trigger"
FEW, MUCH = 0.1, 0.5  # of what the own trigger does; on the demo base drawn pictures clearly showed it from MUCH on
_GRID = 64


@dataclass(frozen=True)
class Question:
    """Asks for picture number `picture` of concept `of` under a condition with the trigger of concept `by`; with none
    where that is as many as there are concepts."""

    picture: int
    of: int
    by: int
    condition: Any


@dataclass(frozen=True)
class Bleeding:
    """Holds what the LoRA gains in loss, mean over pictures and noises: `gains[of][by]`, the last under no trigger.
    `pictures` are as many as were looked at, `held_out` or not."""

    triggers: tuple[str, ...]
    gains: tuple[tuple[float, ...], ...]
    pictures: int
    held_out: bool = True

    def share(self, of: int, by: int) -> float | None:
        """Return the gain under a trigger over that under the concept's own; None where that gains nothing."""
        own = self.gains[of][of]
        return self.gains[of][by] / own if own > 0 else None

    def worst(self) -> tuple[int, int, float] | None:
        """Return the pair of concepts that bleeds most: of which, under whose trigger, and its share; None where no
        concept is learned."""
        count = range(len(self.triggers))
        found = [(of, by, self.share(of, by)) for of in count for by in count if of != by]
        return max(((of, by, share) for of, by, share in found if share is not None), key=lambda x: x[2], default=None)

    def sentence(self) -> str:
        """Return the verdict, the figure, and what to do."""
        own = [name for at, name in enumerate(self.triggers) if self.share(at, at) is None]
        if own:
            return (
                f"Not learned: asked with {' or '.join(own)}, the LoRA is no nearer to its pictures than the base "
                "model; train longer, or show that set more often"
            )
        return "; ".join(filter(None, (self._wrong(), self._unnamed())))

    def _wrong(self) -> str:
        of, by, share = self.worst() or (0, 0, 0.0)
        if share <= FEW:
            return (
                f"The concepts are kept apart: the wrong trigger does at most {_percent(share)} of what the right one "
                "does"
            )
        said = (
            f"for pictures of {self.triggers[of]} the trigger {self.triggers[by]} does {_percent(share)} of what "
            f"{self.triggers[of]} does"
        )
        return f"Concepts bleed: {said}; {CURE}" if share > MUCH else f"The concepts are mostly kept apart: {said}"

    def _unnamed(self) -> str:
        none = len(self.triggers)
        share, name = max((self.share(of, none) or 0.0, name) for of, name in enumerate(self.triggers))
        if share <= MUCH:
            return ""
        return f"with no trigger {_percent(share)} of {name} is there, which keep_apart in Combine LoRA Datasets lowers"

    def rows(self) -> list[list[str]]:
        """Return a row for each concept's pictures, with what every trigger does of it, and none."""
        return [
            [name, *(_said(self.share(of, by)) for by in range(len(self.triggers) + 1))]
            for of, name in enumerate(self.triggers)
        ]

    def report(self) -> str:
        """Return the verdict and what it rests on, as a markdown table."""
        head = ["pictures of", *(f"with {name}" for name in (*self.triggers, NONE))]
        looked = f"{self.pictures} {'held-out' if self.held_out else 'training'} pictures"
        what = f"How much of a concept is there under which trigger, by the loss of {looked} in noise:"
        rows = head, ["---", *["---:"] * len(head[1:])], *self.rows()
        return "\n".join([f"{self.sentence()}.", "", what, "", *(f"| {' | '.join(row)} |" for row in rows)])

    def figures(self) -> dict[str, Any]:
        """Return everything measured, for a machine to read; a share of a concept that is not learned is None."""
        count, asked = range(len(self.triggers)), (*self.triggers, NONE)
        shares = {self.triggers[of]: {name: self.share(of, by) for by, name in enumerate(asked)} for of in count}
        return {"pictures": self.pictures, "shares": shares}

    def table(self) -> Table:
        """Return the same for the front end."""
        count = len(self.triggers) + 1
        lines = [Line(name, tuple(self._cell(of, by) for by in range(count))) for of, name in enumerate(self.triggers)]
        columns = tuple(f"with {name}" for name in (*self.triggers, NONE))
        return Table("heat", "How much of a concept is there", "pictures of", columns, tuple(lines), ("chance", "all"))

    def _cell(self, of: int, by: int) -> Cell | None:
        share, asked = self.share(of, by), (*self.triggers, NONE)[by]
        if share is None:
            return None
        said = f"pictures of {self.triggers[of]} with {asked}: {_percent(share)} of what {self.triggers[of]} does"
        return Cell(_percent(share), min(max(share, 0.0), 1.0), said)


CURE = "choose triggers that are less alike, and caption what else both sets have in common"


def per_concept(count: int) -> int:
    """Return how many pictures of each of so many concepts are looked at."""
    return max(MOST_PICTURES // count, 1)


def levels(denoiser: Denoiser) -> list[float]:
    """Return `LEVELS` quantiles of noise levels, spread over those at which it is open what a picture will show; the
    highest for a model that has none."""
    u = (torch.arange(_GRID) + 0.5) / _GRID
    found = u[~is_clear(denoiser.snr(denoiser.sigma(u)), OPEN)]
    found = found if len(found) else u[-1:]
    return [float(found[(2 * i + 1) * len(found) // (2 * LEVELS)]) for i in range(LEVELS)]


def measured(
    config: TrainConfig, state: TrainState, denoiser: Denoiser, samples: Sequence[Sample],
    triggers: Sequence[str], questions: Sequence[Question], tick: Callable[[], None], held_out: bool = True,
) -> Bleeding:  # fmt: skip
    """Look at the LoRA of a run, whose network is attached, and at the base. `questions` are about these `samples`;
    `tick` is called between forwards and may raise."""
    shown = [replace(samples[each.picture], condition=each.condition, variants=()) for each in questions]
    at = levels(denoiser)
    draws = [
        Draw(number, u, each.picture * LEVELS + level)
        for number, each in enumerate(questions)
        for level, u in enumerate(at)
    ]
    base, own = (validation.measure(draws, config, state, denoiser, shown, base=b, tick=tick) for b in (True, False))
    found = [
        (questions[draw.picture].of, questions[draw.picture].by, before - after)
        for draw, before, after in zip(draws, base, own, strict=True)
    ]
    return of_gains(triggers, found, len({each.picture for each in questions}), held_out)


def of_gains(
    triggers: Sequence[str], found: Iterable[tuple[int, int, float]], pictures: int, held_out: bool = True
) -> Bleeding:
    """Return the means of gains, each of a concept under a trigger."""
    all_of: dict[tuple[int, int], list[float]] = {}
    for of, by, gain in found:
        all_of.setdefault((of, by), []).append(gain)
    count = range(len(triggers))
    means = tuple(tuple(mean(all_of[of, by]) for by in (*count, len(triggers))) for of in count)
    return Bleeding(tuple(triggers), means, pictures, held_out)


def _said(share: float | None) -> str:
    return "not learned" if share is None else _percent(share)


def _percent(share: float) -> str:
    return f"{100 * max(share, 0.0):.0f} %"
