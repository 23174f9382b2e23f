"""Measures what a LoRA does to its concept and beside it, and which of its blocks can be turned down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from ....lora_core.adapter import Adapter
from ....lora_core.analysis.health_effect import Effect, Effects
from ....lora_core.analysis.part_strengths import LEVELS, of_layers, proposed
from ....lora_core.training.strengths import Ends, StrengthPoint, apart
from ..analysis.suggestion import NOTHING, Scene, Seen
from ..host.progress import Progress


class Looking:
    """Looks at LoRAs in a scene, one after the other, and says how far it is."""

    def __init__(self, scene: Scene, progress: Progress, parts: int):
        self.scene, self.progress, self.done = scene, progress, count()
        self.most = 3 + parts * (1 + len(LEVELS))
        progress.begin()

    def seen(self, adapter: Adapter | None, factors: Mapping[str, float] = NOTHING) -> Seen:
        """Look at an adapter, with layers at `factors`, or at the base model alone."""
        done = next(self.done)
        left = f", at most {self.progress.time_left(done, self.most)}" if done else ""
        self.progress.say(f"what it does: {done} of {self.most} at most{left}")
        self.progress.tick(done, self.most)
        return self.scene.seen(1.0 if adapter is not None else 0.0, factors, adapter)


def effects_of(
    looking: Looking, before: Adapter | None, healed: Adapter, named: Mapping[str, Sequence[str]], takes_parts: bool
) -> Effects:  # fmt: skip
    """Return what LoRAs do beside the base model: one `before` it was repaired, if there was a reason to, and the
    `healed` one, with the strengths of its parts where the output takes those. `named` are the layers of each part."""
    base, full = looking.seen(None), looking.seen(healed)
    ends = Ends(base.looked(base), full.looked(base))

    def look(factors: Mapping[str, float]) -> StrengthPoint:
        return ends.point(1.0, looking.seen(healed, factors).looked(base))

    parts = proposed(named, look) if named and _effect(full, base).finite and ends.apart else None
    taken = parts is not None and bool(parts.factors) and takes_parts
    after = full
    if taken and parts is not None:
        after, before = looking.seen(healed, of_layers(parts.factors, named)), before or healed
    old = _effect(looking.seen(before), base) if before is not None else None
    return Effects(base.far[0] if base.far else None, old, _effect(after, base), parts, taken)


def _effect(own: Seen, base: Seen) -> Effect:
    told = None if own.far else apart(own.told, base.told)
    return Effect(own.far[0] if own.far else None, told, apart(own.answers, base.answers))
