"""Makes of a file what is no plain LoRA, for Convert LoRA: LoHa, LoKr, or the file as it is at another strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ....lora_core.adapter import Adapter
from ....lora_core.kinds import Correction, LoHa, LoKr
from ....lora_core.low_rank import LowRank
from ....lora_core.merging.nearest import Nearest, nearest_loha, nearest_lokr

PLAIN, SAME = "LoRA", "as it is"
KINDS: dict[str, tuple[type[Correction], Callable[[LowRank, int], Nearest]]] = {
    "LoHa": (LoHa, nearest_loha),
    "LoKr": (LoKr, nearest_lokr),
}
CHOICES = (PLAIN, *KINDS, SAME)
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Recast:
    """`errors` are relative, of the layers that were changed into another kind."""

    adapter: Adapter
    errors: dict[str, float] = field(default_factory=dict)


def strengthened(adapter: Adapter, strength: float) -> Adapter:
    """Return what does at 1 what `adapter` does at that strength, exactly. Raises ValueError for a kind whose change is
    no multiple of its strength."""
    if strength == 1:
        return adapter
    stiff = {name: item for name, items in adapter.others.items() for item in items if not item.HAS_SCALE}
    if stiff:
        name, item = next(iter(stiff.items()))
        raise ValueError(
            f"{name} is changed by {item.kind} weights, which cannot be kept at strength {strength:g}; set strength to "
            "1, or convert the file to a LoRA"
        )
    others = {name: tuple(item.scaled(strength) for item in items) for name, items in adapter.others.items()}
    return replace(adapter.map(lambda layer: layer.scaled(strength)), others=others)


def recast(plain: Adapter, found: Adapter, kind: str, rank: int, tick: Tick) -> Recast:
    """Return `plain`, a LoRA, with every layer as the nearest of a kind; layers that are of it in the file that was
    `found` stay as they are there."""
    own, nearest = KINDS[kind]
    there = {name: items for name, items in found.others.items() if len(items) == 1 and isinstance(items[0], own)}
    made, errors = {}, {}
    for number, (name, layer) in enumerate(plain.layers.items(), 1):
        if name not in there:
            one = nearest(layer, rank)
            made[name], errors[name] = (one.change,), one.error
        tick(number, len(plain.layers))
    return Recast(replace(plain, layers={}, others={**made, **there}), errors)
