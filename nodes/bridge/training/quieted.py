"""Makes a run quiet: its directions, and what is said of them; without any it goes on loud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ....lora_core.quiet.directions import Quieting, UnfitError
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..quiet.choice import LOUD, OFF
from ..quiet.directions import find
from ..quiet.shared import by_first
from .earlier_auto import rated
from .order import Order
from .run_folders import tell


def quieted(
    order: Order, encoded: Mapping[str, list], patcher: Model, denoiser: ComfyDenoiser, latents: list[Tensor]
) -> tuple[Order, Mapping[str, Quieting] | None]:
    """Return a run with its P by layer, of a loaded model on which nothing is trained yet; or without, with what was
    asked of it changed accordingly, when there are no directions to be had."""
    progress, mu = order.progress, order.recipe.train.quiet
    if not mu:
        return order, None
    shapes = [tuple(latent.shape) for latent in latents]
    usual = max(shapes, key=shapes.count)

    progress.begin()

    def tick(done: int, total: int) -> None:
        progress.say(f"neutral states: {done} of {total}{f', {progress.time_left(done, total)}' if done else ''}")

    try:
        found = by_first(lambda: find(patcher, denoiser, order.subject.layers, encoded, usual, tick))
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
    shared = {id(own): own.quieting(mu) for own in found.layers.values()}
    return order, {name: shared[id(own)] for name, own in found.layers.items()}


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
