"""Collects what goes into a merge: rows of files, then adapters, each with its hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ....lora_core.adapter import Adapter
from ....lora_core.files.hashes import content_hash
from ....lora_core.files.lineage import Parent
from ....lora_core.kinds import Difference
from ....lora_core.stack.rows import NONE, Row
from ..host.model_files import lora_hash
from ..host.progress import Progress
from ..model.names import NameTable
from ..model.spans import ALWAYS
from ..stack.entries import Connected, Entry, adapter_entry, check_rows, effective, load_rows
from .provenance import refuse_losses

NEITHER = "no LoRA is given; choose a file in lora_name, or connect an adapter"


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


def sources(
    table: NameTable, rows: Sequence[Row], adapters: Sequence[Connected], broken: bool = False
) -> list[Source]:  # fmt: skip
    """Return rows of files, then adapters, in the model's names, but for those whose strengths are both 0. Raises
    ValueError when something of one would be lost: text encoders' layers without CLIP, or that it is on for a part of
    sampling or of the picture. Files may hold NaN or infinite values only when `broken`."""
    rows, progress = effective(rows), Progress(1)
    found = [
        Source(entry, lora_hash(row.name, progress), blocks=row.blocks)
        for row, entry in zip(rows, load_rows(rows, table, broken), strict=True)
    ]
    for number, item in enumerate(adapters, 1):
        if item.strength or item.text_strength:
            entry = adapter_entry(item, item.name(number), table)
            found.append(Source(entry, content_hash(item.adapter), "adapter"))
    for source in found:
        _refuse_losses(source.entry, table.has_text)
    return found


def check_one(lora_name: str | None, adapter: str | None) -> bool | str:
    """Return True, or one sentence where there is neither file nor adapter, or the file is missing or unsafe. A link
    is None, an adapter that is not connected is empty."""
    return NEITHER if lora_name in ("", NONE) and adapter == "" else check_rows([lora_name])


def one_source(
    table: NameTable, adapter: Adapter | None, lora_name: str, strengths: tuple[float, float] = (1.0, 1.0),
    broken: bool = False,
) -> Source:  # fmt: skip
    """Return the adapter or the file, which may hold NaN or infinite values only when it may be `broken`. Raises
    ValueError unless there is exactly one of the two, at a strength."""
    by_name = lora_name not in ("", NONE)
    if adapter is None and not by_name:
        raise ValueError(NEITHER)
    if adapter is not None and by_name:
        raise ValueError(
            f"both an adapter and the file {lora_name} are given; set lora_name to None, or disconnect adapter"
        )
    rows = [] if adapter else [Row(lora_name, *strengths)]
    found = sources(table, rows, [Connected(adapter, *strengths)] if adapter else [], broken)
    if not found:
        raise ValueError("strength and text_strength are both 0, which removes the whole LoRA; set one of them")
    return found[0]


def _refuse_losses(entry: Entry, has_text: bool) -> None:
    if entry.span != ALWAYS:
        raise ValueError(
            f"{entry.name} is on from {entry.span[0]:g} to {entry.span[1]:g} of sampling, which a file cannot contain; "
            "remove start and end from its row, or keep using the stack"
        )
    if entry.region:
        raise ValueError(
            f"{entry.name} is on in {entry.region.name} only, which a file cannot contain; take mask= out of its row, "
            "or keep using the stack"
        )
    refuse_losses(entry.name, entry.unmatched, has_text)
