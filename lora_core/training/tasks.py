"""Defines what a run minimises. A row for each choice of `lora_core/data/task.py`; all else of a run asks the row.

Drawing takes latents and conditions of samples as they are: a latent may hold several pictures on a leading axis, and a
condition several texts, which only their task knows of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..data import task as choices
from ..data.slider import LearnSlider
from . import objective
from .config import TrainConfig
from .inject import Factors
from .objective import Denoiser
from .preference import Preference, liked_losses
from .preserving import add_preservation
from .slider import Slider
from .slider_pairs import PairSlider

Measure = Callable[[Callable[..., Tensor]], list[float]]  # what a function called as `losses` finds in each draw


class Task(Protocol):
    """Defines what a run minimises; the factors are attached wherever it is asked.

    `replays`: steps can be captured in graphs. `draws`: the guided answer and the strength of the LoRA are measured
    against the pictures of the set, as `guided` and `strengths` do it; where not, `used_at` says so.
    """

    @property
    def choice(self) -> choices.Task: ...

    @property
    def name(self) -> str:
        """Return what people call it."""
        ...

    @property
    def replays(self) -> bool: ...

    @property
    def draws(self) -> bool: ...

    @property
    def used_at(self) -> str: ...

    def add_gradient(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], kept: list[Any], places: Tensor | None = None, levels: Tensor | None = None,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Add the gradient as the function `add_gradient` does, whose arguments and results these are."""
        ...

    def losses(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return what `add_gradient` minimises for each sample, (batch,) in fp32 or wider: for who only looks."""
        ...

    def shown(self, x0: Tensor) -> Tensor:
        """Return one latent of each sample, (batch, channels, ...): noise is of its shape, and it is what networks
        see."""
        ...

    def condition(self, text: Any) -> Any:
        """Return the condition of a sample all of whose texts are this one, as a rehearsal takes it."""
        ...

    def says(self, factors: Factors, pictures: Sequence[int], losses: Sequence[float], measure: Measure) -> str:
        """Return what the report says of the LoRA at the end of a run with validation, by the last losses of its draws,
        which are of these pictures, and by what `measure` finds in them; empty where the losses tell all."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Learns to draw the pictures of a set."""

    choice: choices.LearnPictures = choices.PICTURES
    name = choices.LearnPictures.name
    replays = draws = True
    used_at = ""

    def add_gradient(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return add_gradient(*args, **kwargs)

    def losses(
        self, config: TrainConfig, factors: Factors, denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor,
        conditions: list[Any], places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return objective.losses(denoiser, x0, noise, sigma, conditions, config.objective, places)

    def shown(self, x0: Tensor) -> Tensor:
        return x0

    def condition(self, text: Any) -> Any:
        return text

    def says(self, factors: Factors, pictures: Sequence[int], losses: Sequence[float], measure: Measure) -> str:
        return ""


PICTURES = Pictures()
TASKS: Mapping[type, Callable[[Any], Task]] = {
    choices.LearnPictures: Pictures, choices.LearnPreference: Preference, LearnSlider: Slider,
    choices.LearnSliderPairs: PairSlider,
}  # fmt: skip


def task_of(choice: choices.Task) -> Task:
    return TASKS[type(choice)](choice)


def probe_of(task: Task) -> Callable[..., Tensor]:
    """Return what is called as `losses` and tells by its rise that the network was ruined. Of pairs that are the liked
    pictures: a margin may be far below zero on a pair that is not learned yet, and says nothing of what is drawn."""
    return liked_losses if isinstance(task, Preference) else task.losses


def add_gradient(
    config: TrainConfig,
    factors: Factors,
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditions: list[Any],
    kept: list[Any],
    places: Tensor | None = None,
    levels: Tensor | None = None,
    share: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Add the gradient of one micro-batch, or of the `share` of its pictures that is given, to the flat buffer; all lie
    on the device. `kept` are conditions on which the base's answer is preserved, one for each sample, at noise `levels`
    if not at `sigma`; none where it is not.

    Returns the loss of each sample, (batch,), and the loss that preserves, not weighted, a scalar; None without.
    """
    losses = objective.losses(denoiser, x0, noise, sigma, conditions, config.objective, places)
    (losses.mean() / (config.accumulation / share)).backward()
    change = add_preservation(config, factors, denoiser, x0, noise, sigma if levels is None else levels, kept, share)
    return losses.detach(), change
