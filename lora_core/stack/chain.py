"""Works out what a stack does to each weight, in order: as a chain of loaders would, with fewer steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kinds import Correction
from ..kinds.correction import widened
from ..low_rank import LowRank
from ..weight_sum import write_sum
from .weighted import Weighted


class Step(NamedTuple):
    """One change of a weight, at its strength; of plain LoRAs their sum, each at its own."""

    change: tuple[LowRank, ...] | Correction
    strength: float = 1.0

    @property
    def kind(self) -> str:
        return "LoRA" if isinstance(self.change, tuple) else self.change.kind

    def apply_to(self, weight: Tensor) -> Tensor:
        """The changed weight, as wide as `weight`, which stays as it is."""
        if isinstance(self.change, tuple):
            terms = [term.scaled(self.strength) for term in self.change]
            return write_sum(weight, terms, torch.empty_like(weight, memory_format=torch.contiguous_format))
        return self.change.apply_to(weight, self.strength)


def applied(weight: Tensor, steps: Iterable[Step]) -> Tensor:
    """`weight` after all steps, in fp32 or wider and rounded once to its own type; `weight` stays as it is."""
    changed = widened(weight)
    for step in steps:
        changed = step.apply_to(changed)
    return changed.to(weight.dtype)


def chain(parts: Sequence[Weighted]) -> dict[str, list[Step]]:
    """Return the steps of each layer, part after part.

    Plain LoRAs are summed into one step. They are summed across corrections that add a fixed matrix, whose order does
    not matter, but not across one that depends on the weight it finds (DoRA, OFT, GLoRA).
    """
    found: dict[str, list[Step]] = {}
    for part in parts:
        for name, steps in _steps_of(part).items():
            found.setdefault(name, []).extend(steps)
    return {name: _fused(steps) for name, steps in found.items()}


def entangled(parts: Sequence[Weighted], cut: bool = False) -> dict[str, list[Step]]:
    """The steps of the layers in which a change finds a weight that another has changed before it, and depends on it:
    what the parts do there is not the sum of what each does alone. When they are to be `cut`, also of those in which
    there are several and one is no plain LoRA: cut each for itself and then their sum, they would lose more."""
    return {
        name: steps for name, steps in chain(parts).items()
        if any(map(_depends, steps[1:])) or cut and len(steps) > 1 and any(step.kind != "LoRA" for step in steps)
    }  # fmt: skip


def _depends(step: Step) -> bool:
    return not isinstance(step.change, tuple) and step.change.depends_on_weight


def _steps_of(part: Weighted) -> dict[str, list[Step]]:
    plain, others = part.adapter.layers, part.adapter.others
    found: dict[str, list[Step]] = {}
    for name in dict.fromkeys((*plain, *others)):
        if strength := part.strength_of(name):
            sums = [Step((plain[name].scaled(strength),))] if name in plain else []
            found[name] = [*sums, *(Step(change, strength) for change in others.get(name, ()))]
    return found


def _fused(steps: Sequence[Step]) -> list[Step]:
    fused: list[Step] = []
    plain: tuple[LowRank, ...] = ()
    for step in (*steps, None):
        if step is not None and isinstance(step.change, tuple):
            plain += step.change
            continue
        if plain and (step is None or _depends(step)):
            fused.append(Step(plain))
            plain = ()
        if step is not None:
            fused.append(step)
    return fused
