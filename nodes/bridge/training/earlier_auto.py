"""Runs that were begun when auto meant something else go on with that: what a run was begun with counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ....lora_core.runs.past_runs import past_runs
from ....lora_core.runs.setting_changes import differences
from ....lora_core.training.config import Recipe
from ....lora_core.training.presets import Choices
from ....lora_core.training.validation import Pictures
from ..host.folders import run_folder
from ..quiet.choice import OFF
from ..stack.carried import BELOW
from .order import Run, Sources
from .prepare import settings

_UNTOLD = {"steps", "model", BELOW}  # may differ in a run that goes on, or is not known yet
_NONE = "00000000"


def as_begun(sources: Sources, recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    """Return what auto meant before, if the latest run of this name with these settings was begun with that."""
    earlier = list(_earlier(recipe, run))
    if not earlier or run.start_over:
        return recipe, run
    own = run_folder(run.name, _NONE)
    for past in reversed(past_runs(own.parent, own.name[: -len(f"-{_NONE}")])):
        if _same(past.settings, sources, recipe):
            return recipe, run
        for known in earlier:
            if _same(past.settings, sources, known[0]):
                return known
    return recipe, run


def _earlier(recipe: Recipe, run: Run) -> Iterator[tuple[Recipe, Run]]:
    """All that auto may have meant, the latest first."""
    loud = _loud(recipe, run) if "quiet" in run.chosen and recipe.train.quiet else None
    if loud is not None:
        yield loud
    for each in filter(None, ((recipe, run), loud)):
        if run.before is not None:
            yield _with(*each, run.before)


def _loud(recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    """Before runs were quiet, and so were not preserved of their own accord."""
    told = "quiet is off, as it was when this run was begun"
    chosen = {**run.chosen, "quiet": OFF}
    return replace(recipe, train=recipe.train.loud(), neutral=()), replace(run, notes=(*run.notes, told), chosen=chosen)


def _with(recipe: Recipe, run: Run, before: Choices) -> tuple[Recipe, Run]:
    objective = replace(recipe.train.objective, timesteps=before.timesteps, shift=before.shift)
    told = f"{before.note()}; the timesteps are those that this run was begun with"
    chosen = {**run.chosen, "timesteps": before.values()["timesteps"]}
    recipe = replace(recipe, train=replace(recipe.train, objective=objective))
    return recipe, replace(run, note=told, chosen=chosen)


def _same(past: Mapping[str, Any], sources: Sources, recipe: Recipe) -> bool:
    now = settings(recipe, sources, "", Pictures(sources.dataset, recipe))
    return not differences(past, now).keys() - _UNTOLD
