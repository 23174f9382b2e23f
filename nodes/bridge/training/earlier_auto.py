"""Runs that were begun when auto meant other timesteps go on with those: what a run was begun with counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ....lora_core.runs.run_folder import past_runs
from ....lora_core.runs.setting_changes import differences
from ....lora_core.training.config import Recipe
from ....lora_core.training.presets import Choices
from ....lora_core.training.validation import Pictures
from ..host.folders import run_folder
from ..stack.carried import BELOW
from .order import Run, Sources
from .prepare import settings

_UNTOLD = {"steps", "model", BELOW}  # may differ in a run that goes on, or is not known yet
_NONE = "00000000"


def as_begun(sources: Sources, recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    """Return what auto meant before, if the latest run of this name with these settings was begun with that."""
    if run.before is None or run.start_over:
        return recipe, run
    earlier = _with(recipe, run.before)
    own = run_folder(run.name, _NONE)
    for past in reversed(past_runs(own.parent, own.name[: -len(f"-{_NONE}")])):
        if _same(past.settings, sources, recipe):
            return recipe, run
        if _same(past.settings, sources, earlier):
            told = f"{run.before.note()}; the timesteps are those that this run was begun with"
            chosen = {**run.chosen, "timesteps": run.before.values()["timesteps"]}
            return earlier, replace(run, note=told, chosen=chosen)
    return recipe, run


def _with(recipe: Recipe, before: Choices) -> Recipe:
    objective = replace(recipe.train.objective, timesteps=before.timesteps, shift=before.shift)
    return replace(recipe, train=replace(recipe.train, objective=objective))


def _same(past: Mapping[str, Any], sources: Sources, recipe: Recipe) -> bool:
    now = settings(recipe, sources, "", Pictures(sources.dataset, recipe))
    return not differences(past, now).keys() - _UNTOLD
