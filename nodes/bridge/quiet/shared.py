"""Quiet directions that one of several ranks finds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....lora_core.quiet.directions import Directions, UnfitError
from ....lora_core.ranks.group import here
from ..host import ranks
from .directions import Found


def by_first(find: Callable[[], Found]) -> Found:
    """Return on all ranks what the first finds, while the others wait. Raises UnfitError on all where it does."""
    if here().size == 1:
        return find()
    told = ranks.by_first(lambda: _told(find))
    if "unfit" in told:
        raise UnfitError(told["unfit"])
    inputs = [Directions(*each) for each in told["inputs"]]
    return Found({name: inputs[at] for name, at in told["layers"].items()}, told["cached"])


def _told(find: Callable[[], Found]) -> dict[str, Any]:
    """Layers that share an input share its directions, as in the file of them."""
    try:
        found = find()
    except UnfitError as reason:
        return {"unfit": str(reason)}
    inputs = list({id(own): own for own in found.layers.values()}.values())
    number = {id(own): at for at, own in enumerate(inputs)}
    return {
        "inputs": [[own.vectors, own.values, own.rest] for own in inputs],
        "layers": {name: number[id(own)] for name, own in found.layers.items()}, "cached": found.cached,
    }  # fmt: skip
