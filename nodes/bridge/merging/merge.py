"""Merge stack rows and connected adapters into one Adapter in the model's layer names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from ....lora_core.adapter import Adapter, layers_of
from ....lora_core.drawing.measure import Measure
from ....lora_core.files import bundled, strays
from ....lora_core.files.lineage import losses
from ....lora_core.kinds import Difference
from ....lora_core.merging import AUTO, METHODS, SUM, auto
from ....lora_core.merging.chart import draw_merge
from ....lora_core.merging.cut_table import cut_measure
from ....lora_core.merging.merge import Merged
from ....lora_core.merging.merge import merge as merge_layers
from ....lora_core.merging.outlook import Loss, Outlook
from ....lora_core.merging.settings import MergeSettings
from ....lora_core.merging.truncation import Limits
from ....lora_core.ranks.group import ALONE, Group
from ....lora_core.stack.chain import entangled
from ..host.wires import Clip, LoraStack, Model
from ..model.names import NameTable, names_of
from ..stack.entries import Connected, Entry, rows_of
from . import outlooks
from .conversion import Tick, as_plain, conversion_record, cost, in_order
from .provenance import described, lost_layers
from .report import cut_notes, in_order_line, merge_report, vectors_line
from .sources import Source, sources

_LONGEST = 1.2e-05  # as text, of errors
_ENTRY = 100  # bytes that a tensor takes in a file's header, beside its name
_ADDED = 1000  # bytes of a header that Save LoRA adds without being asked: hashes, the name of the file
_ANY = Limits(megabytes=1.0)  # stands in a header for limits that are not set yet
IN_ORDER = "parts one after the other"
CHOICES = [SUM, AUTO, *METHODS]


@dataclass(frozen=True)
class Made:
    """Says what a merge gives: the adapter, the report, and its figures as a picture and for the front end. `outlook`
    tells of other limits, where they are all that the merge depends on."""

    adapter: Adapter
    report: str
    chart: Image.Image
    measure: Measure
    outlook: Outlook | None = None

    def with_outlook(self, parts: Sequence[Source] = ()) -> Made:
        """The measure with the key by which the front end asks for other limits, and the parts whose strengths can be
        others, too."""
        if self.outlook is None:
            return self
        entries = [part.entry for part in parts]
        named = {"parts": [[each.name, each.strength, each.text_strength] for each in entries]} if parts else {}
        live = {"key": outlooks.keep(self.outlook), **named}
        return replace(self, measure=replace(self.measure, live=live))


def merge(
    model: Model, clip: Clip | None, lora_stack: LoraStack | None, adapters: Sequence[Connected],
    settings: MergeSettings, limits: Limits, tick: Tick, propose: bool = False, group: Group = ALONE,
) -> Made:  # fmt: skip
    """Return all parts as one adapter; on `propose` by the method, and at the strengths, that suit them. The ranks of
    `group` share the layers out, and all have the whole."""
    table = names_of(model, clip)
    found, reasons, beside = sources(table, rows_of(lora_stack), adapters), [], None
    if propose:
        proposal = auto.propose([part.entry for part in plain(found, model, clip, limits, tick, group)[0]])
        found = [part.at(each.strength, each.text_strength) for part, each in zip(found, proposal.parts, strict=True)]
        settings, reasons = replace(settings, method=proposal.method), proposal.reasons
    if settings.method == SUM:
        found, beside = together(found, model, clip, limits, tick, group)
    parts, notes = plain(found, model, clip, limits, tick, group)
    how = {"proposed": reasons} if reasons else {}
    made = build(parts, settings, limits, table, tick, [*notes, *reasons], how, beside, group)
    return made.with_outlook(() if propose or settings.method != SUM else parts)


def together(
    parts: Sequence[Source], model: Model, clip: Clip | None, limits: Limits, tick: Tick, group: Group = ALONE
) -> tuple[list[Source], Source | None]:  # fmt: skip
    """The parts without the layers in which one changes what it depends on after another (DoRA on top of a LoRA), or
    several are to be cut, and what all of them do there, one after the other; None when there are no such layers."""
    if not (steps := entangled([part.entry for part in parts], cut=limits.highest > 0)):
        return list(parts), None
    made = in_order(steps, model, clip, Limits(limits.highest), tick, group)
    split = [part.entry.adapter.split(steps) for part in parts]
    kinds = sum((inside.kinds() for inside, _ in split), Counter())
    converted = {"name": IN_ORDER, "kinds": dict(kinds), **losses(made.error, made.errors)}
    rest = [replace(p, entry=replace(p.entry, adapter=rest)) for p, (_, rest) in zip(parts, split, strict=True)]
    return rest, Source(Entry(IN_ORDER, made.adapter, 1.0, 1.0), "", converted=converted, vectors=made.vectors)


def plain(
    parts: Sequence[Source], model: Model, clip: Clip | None, limits: Limits, tick: Tick, group: Group = ALONE
) -> tuple[list[Source], list[str]]:
    """Parts of other kinds as plain LoRAs, with what that cost, and what of their files is in none."""
    made, notes = [], []
    for part in parts:
        entry = part.entry
        if entry.adapter.left_out:
            notes.append(f"{entry.name}: {strays.left_out_note(entry.adapter.left_out)}")
        if entry.adapter.others:
            made_plain = as_plain(entry.adapter, model, clip, Limits(limits.highest), tick, entry.strength_of, group)
            notes += [f"{entry.name}: {layers_of(entry.adapter)}; {line}" for line in cost(made_plain)]
            converted = conversion_record(entry.name, entry.adapter, made_plain)
            entry = replace(entry, adapter=made_plain.adapter)
            part = replace(part, entry=entry, converted=converted, vectors=made_plain.vectors)
        made.append(part)
    if made and not any(part.entry.adapter.layers for part in made) and any(part.converted for part in made):
        names = " and ".join(part.entry.name for part in made)
        raise ValueError(
            f"{names}: the file changes only biases and norms, which a LoRA cannot contain; use Load LoRA Stack"
        )
    return made, notes


def _summed(parts: Sequence[Source]) -> dict[str, tuple[Difference]]:
    """Biases and norms, which every method just adds up."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, vector in part.vectors.items():
            if strength := part.entry.strength_of(name):
                total[name] = total.get(name, 0.0) + strength * vector.values
    return {name: (Difference(values),) for name, values in total.items()}


def build(
    parts: Sequence[Source], settings: MergeSettings, limits: Limits, table: NameTable,
    tick: Tick = lambda done, total: None, notes: Sequence[str] = (), how: Mapping[str, Any] | None = None,
    beside: Source | None = None, group: Group = ALONE,
) -> Made:  # fmt: skip
    """Return the merged adapter. `how` is what the file tells beside settings, limits and errors; `beside` is merged
    with the parts and no parent."""
    entries, parents = [part.entry for part in parts], [part.parent for part in parts]
    everything = [*parts, *([beside] if beside else ())]
    converted = [part.converted for part in everything if part.converted]
    vectors = _summed(everything)
    gone = [each for entry in entries for each in lost_layers(entry.name, entry.unmatched, entry.misfits)]
    notes = [*notes, *(in_order_line(beside) if beside else ()), *(vectors_line(vectors) if vectors else ())]
    notes += [line for entry in entries for line in entry.verdict.lines(entry.name)]
    overruled = [{"name": entry.name, **each} for entry in entries for each in entry.verdict.overruled()]
    headers, base = [entry.adapter.metadata for entry in entries], table.family.spelled
    embeddings = bundled.joined(*(entry.adapter.embeddings for entry in entries))

    def adapter(merged: Merged, limits: Limits) -> Adapter:
        lost = {"converted": converted, "left_out": gone, "overruled": overruled}
        made_by = _made_by(merged, settings, limits) | {key: value for key, value in lost.items() if value}
        made_by |= dict(how or {})
        made = described(merged.layers, parents, headers, base, made_by)
        return replace(made, others=vectors, embeddings=embeddings)

    told = limits or _ANY
    layers = {name: layer for part in everything for name, layer in part.entry.adapter.layers.items()}
    longest = Merged(layers, dict.fromkeys(layers, _LONGEST), _LONGEST, _LONGEST)
    beside_layers = sum(2 * vector.values.numel() + len(name) + _ENTRY for name, (vector,) in vectors.items())
    header = _ADDED + len(json.dumps(adapter(longest, told).metadata).encode()) + beside_layers
    merged = merge_layers([part.entry for part in everything], settings, replace(limits, header=header), tick, group)
    report = merge_report(merged, settings, entries, parents, notes, converted)
    what = f"what {settings.method} makes" if settings.method != SUM else "the sum" if len(entries) > 1 else "the LoRA"
    measure = cut_measure(Loss.of(merged, what), " ".join(cut_notes(merged, settings)))
    outlook = None if converted else Outlook(merged, what, header, told, bool(limits), settings.method == SUM)
    return Made(adapter(merged, limits), report, draw_merge(merged, settings.method), measure, outlook)


def _made_by(merged: Merged, settings: MergeSettings, limits: Limits) -> dict[str, object]:
    """For the file: what was done and what it cost."""
    made_by: dict[str, Any] = {"method": settings.method}
    if settings.method != SUM:
        made_by |= {"amount": settings.amount, "seed": settings.seed, "departure": float(f"{merged.departure:.1e}")}
        if density := settings.kept:
            made_by["density"] = density
    if limits:
        made_by |= limits.told()
    return made_by | losses(merged.error, merged.errors)
