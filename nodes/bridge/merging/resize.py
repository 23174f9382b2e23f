"""Another size, strength or choice of layers for one LoRA."""

from __future__ import annotations

from dataclasses import replace

from comfy_execution.graph_utils import ExecutionBlocker

from ....lora_core.adapter import Adapter
from ....lora_core.merging.merge import EXACT, UNLIMITED
from ....lora_core.merging.pick import Pick
from ....lora_core.merging.truncation import Limits
from ..host.wires import Clip, Model
from ..model.names import names_of
from .conversion import Tick
from .merge import Made, build, plain
from .sources import Source, one_source


def resize(
    model: Model, clip: Clip | None, adapter: Adapter | None, lora_name: str, strengths: tuple[float, float],
    pick: Pick, limits: Limits, tick: Tick,
) -> tuple[Made, Adapter | ExecutionBlocker]:  # fmt: skip
    """Return what `pick` takes of the adapter or file, at the strengths and limits, and the rest at the same strengths,
    uncut. Raises ValueError unless there is exactly one of the two."""
    table = names_of(model, clip)
    found = [one_source(table, adapter, lora_name, strengths)]
    (source,), notes = plain(found, model, clip, limits, tick)
    pick.check(source.entry.adapter.layers)
    kept, rest = (_part(source, pick, taken) for taken in (True, False))
    if not kept.entry.adapter.layers:
        count = len(source.entry.adapter.layers)
        raise ValueError(
            f"nothing is left of {count} layers: those that keep and drop select have strength 0 (strength "
            f"{strengths[0]:g}, text_strength {strengths[1]:g}); set the other strength, or keep other layers"
        )
    how = {"method": "resize", "keep": list(pick.keep), "drop": list(pick.drop)}
    made = build([kept], EXACT, limits, table, tick, notes, how).with_outlook()
    if not rest.entry.adapter.layers:
        return made, ExecutionBlocker("rest is empty: keep and drop select all layers")
    left = build([rest], EXACT, UNLIMITED, table, how={**how, "rest": True}).adapter
    report = f"{made.report}\n{len(rest.entry.adapter.layers)} layers are in the output rest"
    return replace(made, report=report), left


def _part(source: Source, pick: Pick, taken: bool) -> Source:
    """Return the part of the source that `pick` takes, or leaves, at a strength other than 0."""
    entry, adapter = source.entry, source.entry.adapter
    layers = {
        name: layer for name, layer in adapter.layers.items() if pick.takes(name) == taken and entry.strength_of(name)
    }
    vectors = {name: vector for name, vector in source.vectors.items() if pick.takes(name) == taken}
    return replace(source, entry=replace(entry, adapter=replace(adapter, layers=layers)), vectors=vectors)
