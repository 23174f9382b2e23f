"""Runs that were begun when auto meant something else go on with that: what a run was begun with counts.

What auto has meant before is said in one place, `presets.Choices.earlier`: other timesteps, and no quiet directions,
with the learning rate that belongs to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....lora_core.runs.past_runs import past_runs
from ....lora_core.runs.setting_changes import differences
from ....lora_core.training.config import Recipe
from ....lora_core.training.presets import Choices
from ....lora_core.training.validation import Pictures
from ..host.folders import run_folder
from ..host.ranks import by_first
from ..quiet.choice import OFF
from ..stack.carried import BELOW
from .order import Run, Sources
from .prepare import settings

_UNTOLD = {"steps", "model", BELOW}  # may differ in a run that goes on, or is not known yet
_NONE = "00000000"


def as_begun(sources: Sources, recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    """Return what auto meant before, if the latest run of this name with these settings was begun with that."""
    if not run.before or run.start_over:
        return recipe, run
    earlier = [(before, _with(recipe, before, "text_learning_rate" in run.chosen)) for before in run.before]
    number = by_first(lambda: _latest(sources, run, [recipe, *(begun for _, begun in earlier)]))
    if not number:
        return recipe, run
    before, begun = earlier[number - 1]
    return begun, _told(run, before, recipe, begun)


def _latest(sources: Sources, run: Run, recipes: Sequence[Recipe]) -> int:
    """Return with which of these the latest run of the name was begun that was begun with any; 0 where none was."""
    own = run_folder(run.name, _NONE)
    for past in reversed(past_runs(own.parent, own.name[: -len(f"-{_NONE}")])):
        for number, recipe in enumerate(recipes):
            if _same(past.settings, sources, recipe):
                return number
    return 0


def _told(run: Run, before: Choices, recipe: Recipe, begun: Recipe) -> Run:
    """The run with what stays on the node, in its field of what was left to it, and without what is no longer so."""
    kept, chosen = [], dict(run.chosen)
    if begun.train.objective != recipe.train.objective:
        kept.append("the timesteps")
    if begun.train.learning_rate != recipe.train.learning_rate:
        kept.append("the learning rate")
    said = [f"{' and '.join(kept)} are those that this run was begun with"] if kept else []
    if loud := begun.train.quiet != recipe.train.quiet:
        said.append("quiet is off, as it was when this run was begun")
        chosen["quiet"] = OFF
    if begun.text and "text_learning_rate" in chosen:
        chosen["text_learning_rate"] = f"{begun.text.learning_rate:g}"
    chosen |= before.chosen()
    note = "; ".join(filter(None, (before.note(), *said)))
    return replace(run, note=note, chosen=chosen, coverage="" if loud else run.coverage)


def _with(recipe: Recipe, before: Choices, text_follows: bool) -> Recipe:
    recipe = rated(recipe, before, text_follows)
    if before.quiet or not recipe.train.quiet:
        return recipe
    return replace(recipe, train=recipe.train.loud(), neutral=())


def rated(recipe: Recipe, choices: Choices, text_follows: bool) -> Recipe:
    """Return the recipe with the timesteps and learning rates of other choices; the rate of text encoders goes with the
    model's where it `text_follows` it."""
    objective = replace(recipe.train.objective, timesteps=choices.timesteps, shift=choices.shift)
    train = replace(recipe.train, objective=objective, learning_rate=choices.learning_rate)
    text = recipe.text
    if text and text_follows:
        text = replace(text, learning_rate=choices.learning_rate / 2)
    return replace(recipe, train=train, text=text)


def _same(past: Mapping[str, Any], sources: Sources, recipe: Recipe) -> bool:
    now = settings(recipe, sources, "", Pictures(sources.dataset, recipe))
    return not differences(past, now).keys() - _UNTOLD
