"""Makes a run quiet: its directions, and what is said of them; without any it goes on loud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ....lora_core.quiet.directions import Quieting, UnfitError
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..quiet.choice import LOUD
from ..quiet.directions import find
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

    def tick(done: int, total: int) -> None:
        progress.say(f"neutral states: {done} of {total}")

    try:
        found = find(patcher, denoiser, order.subject.layers, encoded, usual, tick)
    except UnfitError as reason:
        tell(progress, f"{LOUD}: {reason}")
        return loud(order), None
    progress.keep(f"quiet: directions of {order.run.coverage}{', cached' if found.cached else ''}")
    shared = {id(own): own.quieting(mu) for own in found.layers.values()}
    return order, {name: shared[id(own)] for name, own in found.layers.items()}


def loud(order: Order) -> Order:
    """The same without quiet directions."""
    return replace(order, recipe=replace(order.recipe, train=order.recipe.train.loud()))
