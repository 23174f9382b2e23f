"""The strength to use a LoRA at, measured at the end of a run that is watched."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import comfy.model_management
from node_helpers import conditioning_set_values
from torch import Tensor

from ....lora_core.training.config import Recipe
from ....lora_core.training.strengths import MOST_CAPTIONS, Scale, StrengthCurve
from ..model.denoiser import ComfyDenoiser
from ..quiet.choice import prompts_for
from .order import Order, Sources

if TYPE_CHECKING:
    from .validation import Watch


def measured(watch: Watch) -> tuple[StrengthCurve | None, str]:
    """Return the curve of a run at its end, and what the report says of it; None and the reason where there is nothing
    to measure it with; nothing of a run without validation."""
    chosen, record = watch.chosen, watch.state.record
    if not chosen:
        return None, ""
    if not chosen.held_out:
        return None, _none("no picture is held out")
    if not watch.neutral:
        return None, _none("there are no neutral captions, by which to tell what else the LoRA changes")
    if chosen.keep == "best" and record.best() != watch.state.step:
        return None, _none(f"the LoRA that comes out is that of step {record.best()}, not the last one")
    watch.enters("measuring the strength")
    tick, started = comfy.model_management.throw_exception_if_processing_interrupted, time.monotonic()
    scale = Scale(watch.config, watch.state, watch.denoiser, watch.samples, watch.cfg, tick)
    curve = scale.curve(watch.draws, watch.neutral)
    watch.seconds += time.monotonic() - started
    looked = f"held-out pictures: {curve.pictures}, neutral captions: {curve.captions}"
    return curve, f"{curve.sentence()} ({looked})."


def prompts(sources: Sources, recipe: Recipe) -> tuple[str, ...]:
    """Return the neutral prompts to measure with, spread over those of the run or else of the pack; none for a run
    whose strength is not measured."""
    if not recipe.validation or not recipe.validation.held_out:
        return ()
    found = recipe.neutral or prompts_for(sources.model, sources.dataset, recipe.preserve, "").prompts
    found = tuple(filter(None, found))
    count = min(MOST_CAPTIONS, len(found))
    return tuple(found[number * len(found) // count] for number in range(count))


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
