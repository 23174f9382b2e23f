"""Merge stack rows and connected adapters into one Adapter in the model's layer names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ...lora_core.adapter import TEXT_PREFIX, Adapter
from ...lora_core.files import lineage, metadata
from ...lora_core.files.hashes import data_hash
from ...lora_core.files.lineage import Parent
from ...lora_core.merging import AUTO, METHODS, SUM, auto
from ...lora_core.merging.chart import draw_merge
from ...lora_core.merging.merge import Merged, Settings
from ...lora_core.merging.merge import merge as merge_layers
from ...lora_core.merging.truncation import Limits
from ...lora_core.rows import LIMIT, Row
from .beside import ALWAYS
from .conversion import as_plain, cost
from .folders import lora_path
from .keys import NameTable
from .origin import known_hash
from .progress import Progress
from .stack import Entry, layers_of, load_rows, rows_of

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


def connected(adapters: Iterable[Adapter | None], strengths: str, text_strengths: str) -> list[Connected]:
    """Adapters with their strengths; without text strengths of their own, text layers take the same."""
    found = [adapter for adapter in adapters if adapter is not None]
    own = parse_strengths(strengths, len(found))
    text = parse_strengths(text_strengths, len(found), "text_strengths") if text_strengths.strip() else own
    return [Connected(*each) for each in zip(found, own, text, strict=True)]


@dataclass(frozen=True)
class Source:
    """What goes into a merge. `data_hash` is empty when it never was a file; `blocks` is text of block strengths."""

    entry: Entry
    data_hash: str
    blocks: str = ""

    @property
    def parent(self) -> Parent:
        entry = self.entry
        parent = Parent.of(entry.name, entry.adapter.metadata, entry.strength, entry.text_strength, self.data_hash)
        return replace(parent, blocks=self.blocks)


def merge(
    model, clip, lora_stack, adapters: Sequence[Connected], settings: Settings | str, limits: Limits, tick: Tick
) -> tuple[Adapter, str, Image.Image]:
    """All parts as one adapter, with a report and a picture. `settings` may be AUTO: those that suit the parts."""
    table = NameTable(model, clip)
    parts, notes = plain(sources(table, rows_of(lora_stack), adapters), model, clip, limits, tick)
    if settings != AUTO:
        return build(parts, settings, limits, table, tick, notes)
    proposal = auto.propose([part.entry for part in parts])
    parts = [replace(part, entry=entry) for part, entry in zip(parts, proposal.parts, strict=True)]
    return build(parts, Settings(proposal.method), limits, table, tick, [*notes, *proposal.reasons])


def sources(table: NameTable, rows: Sequence[Row], adapters: Sequence[Connected]) -> list[Source]:
    """Rows of files, then adapters, in the model's names. Raises ValueError when something of one would be lost: a
    layer, or that it is on for a part of sampling only."""
    rows, progress = [row for row in rows if row.active], Progress(1)
    found = []
    for row, entry in zip(rows, load_rows(rows, table), strict=True):
        digest = known_hash(str(lora_path(row.name)), progress, data_hash, "lora_hashes.json")
        found.append(Source(entry, digest, row.blocks))
    for number, item in enumerate(adapters, 1):
        name = item.name(number)
        resolved = table.resolve(item.adapter, name)
        entry = Entry(name, resolved.adapter, item.strength, item.text_strength, resolved.unmatched)
        found.append(Source(entry, ""))
    _refuse_losses([source.entry for source in found])
    return found


def plain(parts: Sequence[Source], model, clip, limits: Limits, tick: Tick) -> tuple[list[Source], list[str]]:
    """Parts of other kinds as plain LoRAs, with what that cost."""
    made, notes = [], []
    for part in parts:
        entry = part.entry
        if entry.adapter.others:
            converted = as_plain(entry.adapter, model, clip, Limits(limits.rank), tick)
            notes += [f"{entry.name}: {layers_of(entry.adapter)}; {line}" for line in cost(converted)]
            part = replace(part, entry=replace(entry, adapter=converted.adapter))
        made.append(part)
    return made, notes


def build(
    parts: Sequence[Source], settings: Settings, limits: Limits, table: NameTable,
    tick: Tick = lambda done, total: None, notes: Sequence[str] = (),
) -> tuple[Adapter, str, Image.Image]:  # fmt: skip
    """The merged adapter, a report and a picture."""
    entries, parents = [part.entry for part in parts], [part.parent for part in parts]
    merged = merge_layers(entries, settings, limits, tick)
    adapter = _described(merged, settings, limits, entries, parents, table)
    return adapter, _report(merged, settings, entries, parents, notes), draw_merge(merged, settings.method)


def _refuse_losses(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.span != ALWAYS:
            raise ValueError(
                f"{entry.name} is on from {entry.span[0]:g} to {entry.span[1]:g} of sampling, which a file cannot say; "
                "take start and end out of its row, or leave it in the stack"
            )
        if entry.unmatched:
            raise ValueError(
                f"{entry.name}: {len(entry.unmatched)} layers would be lost, for example {entry.unmatched[0]}; "
                "connect CLIP for text-encoder layers, or the model the LoRA was made for"
            )


def _described(
    merged: Merged,
    settings: Settings,
    limits: Limits,
    parts: Sequence[Entry],
    parents: Sequence[Parent],
    table: NameTable,
) -> Adapter:
    family, made = table.family, Adapter(merged.layers)
    before = lineage.inherited(parts[0].adapter.metadata) if len(parts) == 1 else {}
    facts = metadata.Facts(
        title=before.get("modelspec.title") or " + ".join(part.name for part in parts)[:120],
        architecture=family.architecture, base_version=family.base_version, base_name=_common(p.base for p in parents),
        trigger=lineage.triggers(parents), tag_frequency=lineage.tags(part.adapter.metadata for part in parts),
        merged_from=tuple(parents), made_by=_made_by(merged, settings, limits),
    )  # fmt: skip
    return Adapter(made.layers, {**before, **metadata.build(facts, made)})


def _common(names: Iterable[str]) -> str:
    found = set(names)
    return found.pop() if len(found) == 1 else ""


def _made_by(merged: Merged, settings: Settings, limits: Limits) -> dict[str, object]:
    """For the file: what was done and what it cost, errors to two digits and only where there are any."""
    told: dict[str, object] = {"method": settings.method}
    if settings.method != SUM:
        told |= {"amount": settings.amount, "density": settings.density, "seed": settings.seed}
        told["departure"] = short(merged.departure)
    if limits:
        told |= {"rank": limits.rank, "energy": limits.energy, "size_mb": limits.megabytes}
    errors = {name: short(error) for name, error in merged.errors.items() if error}
    return told | {"error": short(merged.error)} | ({"errors": errors} if errors else {})


def short(value: float) -> float:
    """Two digits, for the file."""
    return float(f"{value:.1e}")


def _report(
    merged: Merged, settings: Settings, parts: Sequence[Entry], parents: Sequence[Parent], notes: Sequence[str]
) -> str:
    lines = [*notes, *(_part_line(part) for part in parts)]
    lines.append(size_line(merged))
    lines += _method_lines(merged, settings) + _rights_lines(parents) + error_lines(merged)
    return "\n".join(lines)


def size_line(merged: Merged) -> str:
    ranks = [layer.rank for layer in merged.layers.values()]
    size = sum(layer.num_parameters() for layer in merged.layers.values())
    return (
        f"{len(ranks)} layers, rank {min(ranks)} to {max(ranks)}, {size:,} parameters, {2 * size / 1e6:.1f} MB as fp16"
    )


def _part_line(part: Entry) -> str:
    has_text = any(name.startswith(TEXT_PREFIX) for name in part.adapter.layers)
    return f"{part.name} x {part.strength:g}" + (f", text {part.text_strength:g}" if has_text else "")


def _method_lines(merged: Merged, settings: Settings) -> list[str]:
    if settings.method == SUM:
        return [] if any(merged.errors.values()) else ["the sum is exact"]
    both = len(merged.errors) - merged.lone
    line = (
        f"{settings.method} on {both} layers that more than one LoRA changes: {merged.departure:.1%} from the exact sum"
    )
    return [line + (f"; {merged.lone} layers are one LoRA's and are as they were" if merged.lone else "")]


def _rights_lines(parents: Sequence[Parent]) -> list[str]:
    rights = lineage.rights(parents)
    if not rights.licence:
        return []
    words = {True: "yes", False: "no", None: "unknown"}
    lines = [f"licence {rights.licence}: commercial use {words[rights.commercial]}, credit {words[rights.credit]}"]
    if rights.derivatives is False:
        lines.append("warning: a licence among them allows no derived works, and a merge is one; ask its author")
    return lines


def error_lines(merged: Merged) -> list[str]:
    """Of the whole and of every layer, the largest first; none when nothing was lost."""
    if not any(merged.errors.values()):
        return []
    worst = sorted(merged.errors, key=merged.errors.__getitem__, reverse=True)
    lines = [f"relative error of the whole: {merged.error:.2e}, and per layer:"]
    if lost := [name for name in worst if name not in merged.layers]:
        lines.insert(0, f"{len(lost)} layers matter too little for this size and are left out, for example {lost[0]}")
    return lines + [f"  {merged.errors[name]:.2e}  {name}" for name in worst]
