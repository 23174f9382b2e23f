"""Validation at fixed noise: the same pictures, noises and noise levels every time, so that curves can be compared.

No draw comes from the run's own generator, and the factors are looked at as they will be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..data.dataset import Dataset
from ..ranks.group import ALONE, Group
from ..stored import as_text, stored
from . import timesteps, validation
from .config import Recipe, TrainConfig, Validation
from .inject import Factors
from .objective import Denoiser
from .sample import Sample, place_weights
from .state import TrainState
from .steps import brought
from .tasks import PICTURES, Task

MOST, MOST_OF_TRAINING = 16, 8  # pictures


@stored("picture u seed", tag="Draw")
@dataclass(frozen=True)
class Draw:
    """One noise for one picture: its index, the quantile u of the noise level, and the seed of the noise."""

    picture: int
    u: float
    seed: int


Look = Callable[[Sequence[Draw], TrainConfig, Denoiser, Sequence[Sample], torch.device], Tensor]


def choose(names: Sequence[str], digests: Sequence[str], validation: Validation) -> list[list[int]]:
    """Return the examples of each picture that is looked at, by content: a further picture changes one of them at most.

    Examples of one name are one picture. With `held_out` of 0 they are training pictures. Raises ValueError when no
    picture is left to train on.
    """
    pictures: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        pictures.setdefault(name, []).append(index)
    if validation.held_out:
        count = min(max(round(validation.held_out * len(pictures)), 1), MOST)
        if count >= len(pictures):
            raise ValueError(
                f"{count} of {len(pictures)} pictures would be held out and none is left to train on; add pictures, or "
                "set held_out to 0"
            )
    else:
        count = min(len(pictures), MOST_OF_TRAINING)
    ranked = sorted(pictures.values(), key=lambda own: _number(validation.seed, min(digests[i] for i in own)))
    return sorted(ranked[:count])


def plan(
    chosen: Sequence[int],
    digests: Sequence[str],
    config: TrainConfig,
    validation: Validation,
    tokens: Callable[[int], float] = lambda _: 0.0,
) -> list[Draw]:
    """The draws for each of the chosen examples: one in each of `draws` equal shares of the timestep law.

    `tokens` tells the size of an example, as `timesteps.draw` takes it.
    """
    found = []
    for index in chosen:
        own = torch.Generator().manual_seed(_number(validation.seed, digests[index]))
        shares = (torch.arange(validation.draws) + torch.rand(validation.draws, generator=own)) / validation.draws
        u = timesteps.quantile(config.objective, shares.clamp(1e-4, 1 - 1e-4), tokens(index))
        found += [
            Draw(index, level, _number(validation.seed, f"{digests[index]} {i}")) for i, level in enumerate(u.tolist())
        ]
    return found


def key(draws: Sequence[Draw]) -> str:
    """Changes with the draws."""
    return hashlib.sha256(as_text(draws).encode()).hexdigest()[:16]


def measure(
    draws: Sequence[Draw],
    config: TrainConfig,
    state: TrainState,
    denoiser: Denoiser,
    samples: Sequence[Sample],
    base: bool = False,
    tick: Callable[[], None] = lambda: None,
    look: Look | None = None,
    group: Group = ALONE,
    task: Task = PICTURES,
) -> list[float]:
    """The loss of the task for each draw, or what `look` finds in it, with the factors that would be saved now or,
    for `base`, with none. Of several ranks each measures its share and has 0 for the rest: `joined` are all.

    Batches are no larger than a rank's in a training step; `tick` is called after each and may raise.
    """
    look, found = look or partial(looked, task.losses, task.shown, state.factors), [0.0] * len(draws)
    with torch.no_grad(), state.factors.silence() if base else nullcontext(), state.judged():
        batches = _batches(draws, samples, -(-config.batch_size // group.size))
        for batch in (batches[number] for number in group.share(len(batches))):
            values = look([draws[at] for at in batch], config, denoiser, samples, state.factors.flat.device)
            for at, value in zip(batch, values.tolist(), strict=True):
                found[at] = value
            tick()
    return found


def joined(parts: Sequence[Sequence[float]]) -> list[float]:
    """Return what was measured of each draw, by what every rank has measured."""
    return [sum(each) for each in zip(*parts, strict=True)]


def noises_of(draws: Sequence[Draw], shape: torch.Size) -> Tensor:
    """Return the noise of each draw for latents (batch, channels, ...), fp32 on the CPU."""
    return torch.stack([torch.randn(shape[1:], generator=torch.Generator().manual_seed(d.seed)) for d in draws])


def _batches(draws: Sequence[Draw], samples: Sequence[Sample], size: int) -> list[list[int]]:
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for at, draw in enumerate(draws):
        by_shape.setdefault(tuple(samples[draw.picture].latent.shape), []).append(at)
    return [part[start : start + size] for part in by_shape.values() for start in range(0, len(part), size)]


def looked(
    losses: Callable[..., Tensor], shown: Callable[[Tensor], Tensor], factors: Factors, draws: Sequence[Draw],
    config: TrainConfig, denoiser: Denoiser, samples: Sequence[Sample], device: torch.device,
) -> Tensor:  # fmt: skip
    """Return what `losses` finds of the draws, called as a task's; `shown` is that of the task."""
    batch = [samples[draw.picture] for draw in draws]
    x0 = torch.stack([sample.latent for sample in batch])
    noise = noises_of(draws, shown(x0).shape)
    sigma = denoiser.sigma(torch.tensor([draw.u for draw in draws]))
    conditions = [sample.condition for sample in batch]
    places = place_weights(config.objective, batch)
    x0, noise, places, sigma = brought([x0, noise, places, sigma], device)
    return losses(config, factors, denoiser, x0, noise, sigma, conditions, places)


def _number(seed: int, text: str) -> int:
    return int(hashlib.sha256(f"{seed} {text}".encode()).hexdigest()[:15], 16)


class Pictures:
    """Says which examples a run learns from and which it looks at; all and none without validation."""

    def __init__(self, dataset: Dataset, recipe: Recipe):
        examples, chosen = dataset.examples, recipe.validation
        shown = [i for i, example in enumerate(examples) if example.group.role == "concept"] or range(len(examples))
        names = [f"{examples[i].group.name}\n{examples[i].source}" for i in shown]
        digests = [examples[i].digest for i in shown]
        found = validation.choose(names, digests, chosen) if chosen else []
        found = [[shown[i] for i in own] for own in found]
        held = {i for own in found for i in own} if chosen and chosen.held_out else set()
        self.dataset, self.looked_at = dataset, [own[-1] for own in found]
        self.learned = [i for i in range(len(examples)) if i not in held]
        self.held = [examples[i].digest for i in sorted(held)]

    def learned_dataset(self) -> Dataset:
        """Return the data set without what is held out."""
        return replace(self.dataset, examples=tuple(self.dataset.examples[i] for i in self.learned))

    def times(self) -> list[float]:
        """Return how often a pass over the data shows each example; those held out, never."""
        learned = set(self.learned)
        return [times if i in learned else 0 for i, times in enumerate(self.dataset.times())]
