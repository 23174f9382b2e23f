"""Merge stack rows and connected adapters into one Adapter in the model's layer names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor

from ...lora_core.adapter import TEXT_PREFIX, Adapter
from ...lora_core.files import lineage, strays
from ...lora_core.files.hashes import content_hash
from ...lora_core.files.lineage import Parent, losses
from ...lora_core.files.mismatch import lacking, left_out
from ...lora_core.kinds import Difference
from ...lora_core.merging import AUTO, METHODS, SUM, auto
from ...lora_core.merging.chain import entangled
from ...lora_core.merging.chart import as_range, draw_merge
from ...lora_core.merging.merge import Merged, Settings
from ...lora_core.merging.merge import merge as merge_layers
from ...lora_core.merging.truncation import Limits
from ...lora_core.rows import LIMIT, Row
from .clock import ALWAYS
from .conversion import as_plain, cost, in_order, told
from .keys import NameTable
from .offspring import described, lost_layers, refuse_losses
from .origin import lora_hash
from .progress import Progress
from .stack import Entry, layers_of, load_rows, rows_of

_LONGEST = 1.2e-05  # as text, of errors
_ENTRY = 100  # bytes that a tensor takes in a file's header, beside its name
_ADDED = 1000  # bytes of a header that Save LoRA adds without being asked: hashes, the name of the file
IN_ORDER = "parts one after the other"
CHOICES = [SUM, AUTO, *METHODS]
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Connected:
    """An adapter from the graph, by what it is called in reports."""

    adapter: Adapter
    strength: float
    text_strength: float

    def name(self, number: int) -> str:
        return self.adapter.metadata.get("modelspec.title") or f"adapter {number}"


def parse_strengths(text: str, count: int | None, what: str = "strengths") -> list[float]:
    """Comma-separated strengths; empty text means 1 each. Raises ValueError when a number or their count is wrong."""
    try:
        values = [float(part) for part in text.split(",")] if text.strip() else [1.0] * (count or 0)
    except ValueError as error:
        raise ValueError(f"{what} is {text!r}; write numbers separated by commas, such as 1.0, 0.5") from error
    if not all(abs(value) <= LIMIT for value in values):
        raise ValueError(f"{what} is {text!r}; each must be between -{LIMIT:g} and {LIMIT:g}")
    if count is not None and len(values) != count:
        raise ValueError(f"{len(values)} {what} for {count} connected adapters; give one for each, or none")
    return values


def check_strengths(adapters: Mapping[str, Any] | None, **texts: str | None) -> bool | str:
    """True, or one sentence about the first text of strengths that is wrong. Before a graph runs only the names of
    `adapters` are known, and of a text that is linked nothing (None)."""
    count = None if adapters is None else len(adapters)
    try:
        for what, text in texts.items():
            parse_strengths(text or "", count, what)
    except ValueError as error:
        return str(error)
    return True


def connected(adapters: Iterable[Adapter | None], strengths: str, text_strengths: str) -> list[Connected]:
    """Adapters with their strengths; without text strengths of their own, text layers take the same."""
    found = [adapter for adapter in adapters if adapter is not None]
    own = parse_strengths(strengths, len(found))
    text = parse_strengths(text_strengths, len(found), "text_strengths") if text_strengths.strip() else own
    return [Connected(*each) for each in zip(found, own, text, strict=True)]


@dataclass(frozen=True)
class Source:
    """Describes what goes into a merge: its hash, of what (see `Parent`), text of block strengths, and, of one that was
    no plain LoRA, what it cost to make it one, with what it adds to biases and norms."""

    entry: Entry
    sha256: str
    hash_of: str = ""
    blocks: str = ""
    converted: Mapping[str, Any] | None = None
    vectors: Mapping[str, Difference] = field(default_factory=dict)

    def at(self, strength: float, text_strength: float) -> Source:
        return replace(self, entry=replace(self.entry, strength=strength, text_strength=text_strength))

    @property
    def parent(self) -> Parent:
        entry = self.entry
        strengths = entry.strength, entry.text_strength
        parent = Parent.of(entry.name, entry.adapter.metadata, *strengths, self.sha256, self.hash_of)
        return replace(parent, blocks=self.blocks)


def merge(
    model, clip, lora_stack, adapters: Sequence[Connected], settings: Settings, limits: Limits, tick: Tick,
    propose: bool = False,
) -> tuple[Adapter, str, Image.Image]:  # fmt: skip
    """All parts as one adapter, with a report and a picture; on `propose` by the method, and at the strengths, that
    suit them."""
    table = NameTable(model, clip)
    found, reasons, beside = sources(table, rows_of(lora_stack), adapters), [], None
    if propose:
        proposal = auto.propose([part.entry for part in plain(found, model, clip, limits, tick)[0]])
        found = [part.at(each.strength, each.text_strength) for part, each in zip(found, proposal.parts, strict=True)]
        settings, reasons = replace(settings, method=proposal.method), proposal.reasons
    if settings.method == SUM:
        found, beside = together(found, model, clip, limits, tick)
    parts, notes = plain(found, model, clip, limits, tick)
    how = {"proposed": reasons} if reasons else {}
    return build(parts, settings, limits, table, tick, [*notes, *reasons], how, beside)


def sources(table: NameTable, rows: Sequence[Row], adapters: Sequence[Connected]) -> list[Source]:
    """Rows of files, then adapters, in the model's names, but for those whose strengths are both 0. Raises ValueError
    when something of one would be lost: text encoders' layers without CLIP, or that it is on for a part of sampling."""
    rows, progress = [row for row in rows if row.active], Progress(1)
    found = [
        Source(entry, lora_hash(row.name, progress), blocks=row.blocks)
        for row, entry in zip(rows, load_rows(rows, table), strict=True)
    ]
    for number, item in enumerate(adapters, 1):
        if item.strength or item.text_strength:
            name = item.name(number)
            resolved = table.resolve(item.adapter, name)
            strengths = item.strength, item.text_strength
            entry = Entry(name, resolved.adapter, *strengths, resolved.unmatched, misfits=resolved.misfits)
            found.append(Source(entry, content_hash(item.adapter), "adapter"))
    for source in found:
        _refuse_losses(source.entry, table.has_text)
    return found


def together(
    parts: Sequence[Source], model, clip, limits: Limits, tick: Tick
) -> tuple[list[Source], Source | None]:  # fmt: skip
    """The parts without the layers in which one changes what it depends on after another (DoRA on top of a LoRA), or
    several are to be cut, and what all of them do there, one after the other; None when there are no such layers."""
    if not (steps := entangled([part.entry for part in parts], cut=limits.rank > 0)):
        return list(parts), None
    made = in_order(steps, model, clip, Limits(limits.rank), tick)
    split = [part.entry.adapter.split(steps) for part in parts]
    kinds = sum((inside.kinds() for inside, _ in split), Counter())
    converted = {"name": IN_ORDER, "kinds": dict(kinds), **losses(made.error, made.errors)}
    rest = [replace(p, entry=replace(p.entry, adapter=rest)) for p, (_, rest) in zip(parts, split, strict=True)]
    return rest, Source(Entry(IN_ORDER, made.adapter, 1.0, 1.0), "", converted=converted, vectors=made.vectors)


def plain(parts: Sequence[Source], model, clip, limits: Limits, tick: Tick) -> tuple[list[Source], list[str]]:
    """Parts of other kinds as plain LoRAs, with what that cost, and what of their files is in none."""
    made, notes = [], []
    for part in parts:
        entry = part.entry
        if entry.adapter.left_out:
            notes.append(f"{entry.name}: {strays.told(entry.adapter.left_out)}")
        if entry.adapter.others:
            made_plain = as_plain(entry.adapter, model, clip, Limits(limits.rank), tick, entry.strength_of)
            notes += [f"{entry.name}: {layers_of(entry.adapter)}; {line}" for line in cost(made_plain)]
            converted = told(entry.name, entry.adapter, made_plain)
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
    parts: Sequence[Source], settings: Settings, limits: Limits, table: NameTable,
    tick: Tick = lambda done, total: None, notes: Sequence[str] = (), how: Mapping[str, Any] | None = None,
    beside: Source | None = None,
) -> tuple[Adapter, str, Image.Image]:  # fmt: skip
    """The merged adapter, a report and a picture. `how` is what the file tells beside settings, limits and errors;
    `beside` is merged with the parts and no parent."""
    entries, parents = [part.entry for part in parts], [part.parent for part in parts]
    everything = [*parts, *([beside] if beside else ())]
    converted = [part.converted for part in everything if part.converted]
    vectors = _summed(everything)
    gone = [each for entry in entries for each in lost_layers(entry.name, entry.unmatched, entry.misfits)]
    notes = [*notes, *(_in_order_line(beside) if beside else ()), *(_vectors_line(vectors) if vectors else ())]

    def adapter(merged: Merged) -> Adapter:
        told = {"converted": converted, "left_out": gone}
        made_by = _made_by(merged, settings, limits) | {key: value for key, value in told.items() if value}
        made_by |= dict(how or {})
        made = described(merged.layers, parents, [entry.adapter.metadata for entry in entries], table, made_by)
        return replace(made, others=vectors)

    if limits.megabytes:
        layers = {name: layer for part in everything for name, layer in part.entry.adapter.layers.items()}
        longest = Merged(layers, dict.fromkeys(layers, _LONGEST), _LONGEST, _LONGEST)
        beside_layers = sum(2 * vector.values.numel() + len(name) + _ENTRY for name, (vector,) in vectors.items())
        header = _ADDED + len(json.dumps(adapter(longest).metadata).encode()) + beside_layers
        limits = replace(limits, header=header)
    merged = merge_layers([part.entry for part in everything], settings, limits, tick)
    report = _report(merged, settings, entries, parents, notes, converted)
    return adapter(merged), report, draw_merge(merged, settings.method)


def _in_order_line(beside: Source) -> list[str]:
    told = beside.converted or {}
    kinds = " and ".join(kind for kind in told["kinds"] if kind != "LoRA")
    return [
        f"{len(beside.entry.adapter.layers)} layers are changed by {kinds} together with other LoRAs and are merged in "
        f"the order of the stack, relative error {100 * told['error']:.2g} %"
    ]


def _vectors_line(vectors: Mapping[str, Any]) -> list[str]:
    first = next(iter(vectors))
    return [f"{len(vectors)} biases and norms are added exactly and are in the file, for example {first}"]


def _refuse_losses(entry: Entry, has_text: bool) -> None:
    if entry.span != ALWAYS:
        raise ValueError(
            f"{entry.name} is on from {entry.span[0]:g} to {entry.span[1]:g} of sampling, which a file cannot contain; "
            "remove start and end from its row, or keep using the stack"
        )
    refuse_losses(entry.name, entry.unmatched, has_text)


def _made_by(merged: Merged, settings: Settings, limits: Limits) -> dict[str, object]:
    """For the file: what was done and what it cost."""
    made_by: dict[str, Any] = {"method": settings.method}
    if settings.method != SUM:
        made_by |= {"amount": settings.amount, "seed": settings.seed, "departure": float(f"{merged.departure:.1e}")}
        if density := settings.kept:
            made_by["density"] = density
    if limits:
        made_by |= {"rank": limits.rank, "energy": limits.energy, "size_mb": limits.megabytes}
    return made_by | losses(merged.error, merged.errors)


def _report(
    merged: Merged, settings: Settings, parts: Sequence[Entry], parents: Sequence[Parent], notes: Sequence[str],
    converted: Sequence[Mapping[str, Any]],
) -> str:  # fmt: skip
    lines = [*notes, *(_part_line(part) for part in parts)]
    lines.append(size_line(merged))
    if gone := merged.cancelled:
        lines.append(f"{len(gone)} layers cancel out and are not in the LoRA, for example {gone[0]}")
    lines += _method_lines(merged, settings, len(parts), bool(converted)) + _rights_lines(parents) + error_lines(merged)
    for each in converted:
        lines += _converted_lines(each["name"], each.get("errors", {}))
    return "\n".join(lines)


def _converted_lines(name: str, errors: Mapping[str, float]) -> list[str]:
    worst = sorted(errors, key=errors.__getitem__, reverse=True)
    lines = [f"  {100 * errors[layer]:.2g} %  {layer}" for layer in worst]
    return [f"relative error of {name}, converted to plain LoRA, per layer:", *lines] if worst else []


def size_line(merged: Merged) -> str:
    ranks = [layer.rank for layer in merged.layers.values()]
    size = sum(layer.num_parameters() for layer in merged.layers.values())
    return f"{len(ranks)} layers, rank {as_range(ranks)}, {size:,} parameters, {2 * size / 1e6:.1f} MB as fp16"


def _part_line(part: Entry) -> str:
    has_text = any(name.startswith(TEXT_PREFIX) for name in part.adapter.layers)
    line = f"{part.name} x {part.strength:g}" + (f", text {part.text_strength:g}" if has_text else "")
    return "; ".join(filter(None, (line, lacking(part.unmatched), left_out(part.misfits))))


def _method_lines(merged: Merged, settings: Settings, parts: int, converted: bool) -> list[str]:
    if settings.method == SUM:
        exact = ("the sum is exact" if parts > 1 else "it is exact") + (
            " except for the converted layers" if converted else ""
        )
        return [] if any(merged.errors.values()) else [exact]
    both = len(merged.errors) - merged.lone
    line = (
        f"{settings.method} on {both} layers that more than one LoRA changes: {merged.departure:.1%} away from the "
        "exact sum"
    )
    return [line + (f"; {merged.lone} layers are in only one LoRA and are not changed" if merged.lone else "")]


def _rights_lines(parents: Sequence[Parent]) -> list[str]:
    rights = lineage.rights(parents)
    if not rights.licence:
        return []
    words = {True: "yes", False: "no", None: "unknown"}
    lines = [f"licence {rights.licence}: commercial use {words[rights.commercial]}, credit {words[rights.credit]}"]
    if rights.derivatives is False:
        lines.append("warning: one of the licences does not allow derived works such as a merge; ask the author")
    return lines


def error_lines(merged: Merged) -> list[str]:
    """List the relative errors of the whole and of every layer, the largest first; none when nothing was lost."""
    if not any(merged.errors.values()):
        return []
    worst = sorted(merged.errors, key=merged.errors.__getitem__, reverse=True)
    lines = [f"relative error: {100 * merged.error:.3g} % in total; per layer:"]
    if lost := [name for name in worst if merged.errors[name] and name not in merged.layers]:
        lines.insert(
            0, f"{len(lost)} of the least important layers are left out to reach this size, for example {lost[0]}"
        )
    return lines + [f"  {100 * merged.errors[name]:.3g} %  {name}" for name in worst]
