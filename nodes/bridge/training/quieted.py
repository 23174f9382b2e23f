"""Makes a run quiet: its directions, and what is said of them; without any it goes on loud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ....lora_core.quiet import kept
from ....lora_core.quiet.directions import UnfitError
from ....lora_core.ranks.group import here
from ....lora_core.runs.run_folder import DIRECTIONS, RunFolder
from ..host.progress import Progress
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..quiet.choice import LOUD, OFF
from ..quiet.directions import Found, find
from ..quiet.shared import by_first
from .earlier_auto import rated
from .order import Order
from .prepare import identified
from .run_folders import goes_on_from, tell


def quieted(
    order: Order, encoded: Mapping[str, list], patcher: Model, denoiser: ComfyDenoiser, latents: list[Tensor]
) -> tuple[Order, Found | None]:
    """Return a run with its directions, of a loaded model on which nothing is trained yet: its own when it goes on. Or
    without, with what was asked of it changed accordingly, when there are none to be had."""
    progress = order.progress
    if not order.recipe.train.quiet:
        return order, None
    shapes = [tuple(order.task.shown(latent[None])[0].shape) for latent in latents]
    usual = max(shapes, key=shapes.count)

    progress.begin()

    def tick(done: int, total: int) -> None:
        progress.say(f"neutral states: {done} of {total}{f', {progress.time_left(done, total)}' if done else ''}")

    try:
        layers = order.subject.layers
        found = by_first(lambda: find(patcher, denoiser, layers, encoded, usual, tick, _own(order, patcher)))
    except UnfitError as reason:
        order = loud(order)
        at = (
            f". Its learning rate is {order.recipe.train.learning_rate:g}"
            if "learning_rate" in order.run.chosen
            else ""
        )
        tell(progress, f"{LOUD}: {reason}{at}")
        return order, None
    progress.keep(f"quiet: directions of {order.run.coverage}{'; kept from before' if found.cached else ''}")
    return order, found


def _own(order: Order, patcher: Model) -> Path | None:
    """Where a run that goes on has kept its directions."""
    run, (identity, settings, before) = order.run, identified(order, patcher)
    folder = goes_on_from(run.name, identity, settings, run.start_over, before)
    return folder and folder / DIRECTIONS


def keep(found: Found | None, run: RunFolder, progress: Progress) -> None:
    """Keep the directions with the run, however often the cache is emptied; a disk that does not take them is told."""
    path = run.path / DIRECTIONS
    if found is None or found.path == path or not here().first:
        return
    try:
        kept.keep(path, found.layers, found.path)
    except OSError as error:
        tell(
            progress,
            f"warning: {path} cannot be written ({error.strerror or error}); if output/lora_loom_cache is emptied too, "
            "this run does not go on exactly as it was after an interruption",
        )


def loud(order: Order) -> Order:
    """Return the same without quiet directions, at the learning rate that auto has without them; said on the node."""
    recipe, run = order.recipe, order.run
    if run.loud is not None:
        follows = "text_learning_rate" in run.chosen
        recipe = rated(recipe, run.loud, follows)
        chosen = {**run.chosen, **run.loud.chosen(), **({"quiet": OFF} if "quiet" in run.chosen else {})}
        if recipe.text and follows:
            chosen["text_learning_rate"] = f"{recipe.text.learning_rate:g}"
        run = replace(run, note=run.loud.note(), chosen=chosen, coverage="")
        order.progress.corrects(order.run.note, run.note, chosen)
    return replace(order, recipe=replace(recipe, train=recipe.train.loud()), run=run)
