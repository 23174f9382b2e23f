"""The strength to use a LoRA at, measured at the end of a run that is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from node_helpers import conditioning_set_values
from torch import Tensor

from ....lora_core.training.config import Recipe, Validation
from ....lora_core.training.strengths import Scale, StrengthCurve, few
from ....lora_core.training.tasks import Task, task_of
from ....lora_core.training.validation import Draw
from ..model.denoiser import ComfyDenoiser
from ..quiet.choice import prompts_for
from .order import Order, Sources


def measured(
    task: Task, scale: Scale, chosen: Validation, draws: Sequence[Draw], neutral: Sequence[tuple[int, Any]]
) -> tuple[StrengthCurve | None, str]:
    """Return the curve of a run at its end, and what the report says of it; None and the reason where there is nothing
    to measure it with."""
    if not task.draws:
        return None, task.used_at
    if not chosen.held_out:
        return None, _none("no picture is held out")
    if not neutral:
        return None, _none("there are no neutral captions, by which to tell what else the LoRA changes")
    best = scale.state.record.best()
    if chosen.keep == "best" and best != scale.state.step:
        return None, _none(f"the LoRA that comes out is that of step {best}, not the last one")
    curve = scale.curve(draws, neutral)
    looked = f"held-out pictures: {curve.pictures}, neutral captions: {curve.captions}"
    return curve, f"{curve.sentence()} ({looked})."


def prompts(sources: Sources, recipe: Recipe) -> tuple[str, ...]:
    """Return the neutral prompts to measure with, spread over those of the run or else of the pack; none for a run
    whose strength is not measured."""
    if not recipe.validation or not recipe.validation.held_out or not task_of(sources.dataset.task).draws:
        return ()
    found = recipe.neutral or prompts_for(sources.model, sources.dataset, recipe.preserve, "").prompts
    return few(found)


def asked(
    denoiser: ComfyDenoiser, order: Order, encoded: Mapping[str, list], latents: Sequence[Tensor],
    priors: Sequence[Mapping[str, Tensor]],
) -> list[tuple[int, Any]]:  # fmt: skip
    """Return pictures that are looked at, by index, each with the condition of a neutral prompt for its latent. Latents
    and priors are those of all views."""
    shown, examples, found = order.pictures.looked_at, order.sources.dataset.examples, []
    for number, prompt in enumerate(prompts(order.sources, order.recipe)):
        picture = shown[number % len(shown)]
        view = sum(example.num_views for example in examples[:picture])
        text = conditioning_set_values(encoded[prompt], dict(priors[view]))
        found.append((picture, denoiser.condition(text, latents[view])))
    return found


def _none(why: str) -> str:
    return f"No strength is suggested: {why}."
