"""Work on many things, each for itself, dealt out to the ranks so that all have about as much to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .group import Group

Done = TypeVar("Done")
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Wire(Generic[Done]):
    """Makes a value of `lora_core.trees` of what is done, and back; `unpacked` is told the name, too."""

    packed: Callable[[Done], Any]
    unpacked: Callable[[str, Any], Done]


def dealt(
    group: Group, costs: Mapping[str, float], work: Callable[[str], Done], wire: Wire[Done],
    tick: Tick = lambda done, total: None,
) -> dict[str, Done]:  # fmt: skip
    """Return on every rank what `work` makes of each name, in the order of the names, which all ranks have alike.

    `costs` are about how long each takes, beside the others. `tick` hears how much of its own share a rank has done.
    What is raised on one rank ends the work on all (see `Group.every`).
    """
    made: dict[str, Done] = {}
    owner = dict(zip(costs, owners(list(costs.values()), group.size), strict=True))
    mine = [name for name in costs if owner[name] == group.rank]

    def share() -> dict[str, Any]:
        for name in mine:
            made[name] = work(name)
            tick(len(made), len(mine))
        return {name: wire.packed(made[name]) for name in mine} if group.size > 1 else {}

    by_rank = group.every(share)
    return {name: made[name] if name in made else wire.unpacked(name, by_rank[owner[name]][name]) for name in costs}


def owners(costs: Sequence[float], size: int) -> list[int]:
    """Return the rank that does each: the costly ones are dealt first, always to the rank with the least so far."""
    loads, found = [0.0] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        found[index] = min(range(size), key=loads.__getitem__)
        loads[found[index]] += costs[index]
    return found
