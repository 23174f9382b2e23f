"""A LoRA beside the weights of its base model, as plain layers that can be judged and repaired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch

from ....lora_core.adapter import Adapter
from ....lora_core.analysis.health import Health
from ....lora_core.analysis.repair import Repair
from ....lora_core.low_rank import LowRank
from ....lora_core.merging.merge import UNLIMITED
from ....lora_core.stored import as_dict
from ..host.progress import Progress
from ..host.wires import Clip, Model
from ..merging.merge import plain
from ..merging.provenance import described, lost_layers
from ..merging.sources import Source, one_source
from ..model.base_figures import Base
from ..model.names import names_of
from ..stack.entries import Entry


@dataclass(frozen=True)
class Examined:
    """Holds one LoRA in the model's names, every matrix plain, with its health and notes on what became of its file.
    `spelled` are the base's names of the architecture, for the header."""

    source: Source
    health: Health
    notes: tuple[str, ...]
    spelled: tuple[str, str]

    @property
    def name(self) -> str:
        return self.source.entry.name

    @property
    def layers(self) -> Mapping[str, LowRank]:
        return self.source.entry.adapter.layers

    @property
    def broken(self) -> list[str]:
        return [layer.name for layer in self.health.broken]

    def holding(self, layers: Mapping[str, LowRank]) -> Entry:
        """Return it at strength 1 with these layers in the place of its own."""
        return replace(self.source.entry, adapter=self._with_vectors(Adapter(layers)))

    def written(self, layers: Mapping[str, LowRank], repairs: Sequence[Repair]) -> Adapter:
        """Return the layers with a header that says what each was made by. Raises ValueError when none is left."""
        if not layers:
            raise ValueError(f"nothing is left of {self.name}: all {len(self.layers)} layers are broken or dead")
        entry, source = self.source.entry, self.source
        how = {"method": "repair", "repairs": as_dict(list(repairs))}
        lost = {
            "converted": [source.converted] if source.converted else [],
            "left_out": lost_layers(entry.name, entry.unmatched, entry.misfits),
            "overruled": [{"name": entry.name, **each} for each in entry.verdict.overruled()],
        }
        how |= {key: value for key, value in lost.items() if value}
        return self._with_vectors(described(layers, [source.parent], [entry.adapter.metadata], self.spelled, how))

    def _with_vectors(self, adapter: Adapter) -> Adapter:
        return replace(adapter, others={name: (vector,) for name, vector in self.source.vectors.items()})


def examined(
    model: Model, clip: Clip | None, adapter: Adapter | None, lora_name: str, progress: Progress
) -> Examined:  # fmt: skip
    """Return the adapter or the file with its figures. Raises ValueError when there is not exactly one of the two, and
    when layers of text encoders would be lost."""
    table = names_of(model, clip)
    found, gone = _without_broken_kinds(one_source(table, adapter, lora_name, broken=True))
    (source,), notes = plain([found], model, clip, UNLIMITED, progress.tick)
    layers, base, done = source.entry.adapter.layers, Base(model, clip), count(1)

    def tick() -> None:
        progress.tick(next(done), 2 * len(layers))

    progress.say("measuring the base model (once per model)")
    norms = base.norms(layers, tick)
    progress.say(f"{len(layers)} layers")
    lines = [*gone, *notes, *found.entry.verdict.lines(found.entry.name)]
    return Examined(source, Health.of(layers, norms, tick), tuple(lines), table.family.spelled)


def _without_broken_kinds(source: Source) -> tuple[Source, list[str]]:
    """Layers that are no plain LoRA and hold NaN or infinite values have no plain form, and go at once."""
    others = source.entry.adapter.others
    broken = [name for name, items in others.items() if not all(map(_finite, (t for i in items for t in i.tensors())))]
    if not broken:
        return source, []
    adapter = replace(source.entry.adapter, others={name: others[name] for name in others if name not in broken})
    line = f"{len(broken)} layers that are no plain LoRA hold NaN or infinite values and are left out: {broken[0]}"
    return replace(source, entry=replace(source.entry, adapter=adapter)), [line]


def _finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
