"""From rows of names and strengths to adapters in the model's own layer names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import torch

from ...lora_core import stack_entries
from ...lora_core.adapter import Adapter
from ...lora_core.analysis.findings import of_stack
from ...lora_core.blocks import strengths
from ...lora_core.files import guard, strays
from ...lora_core.files.mismatch import Misfit, lacking, left_out
from ...lora_core.files.store import Store
from ...lora_core.files.words import trigger_words, unique
from ...lora_core.merging.chain import chain
from ...lora_core.merging.exact_sum import Weighted
from ...lora_core.rows import NONE, Row, parse
from . import attribution
from .beside import uncalled
from .clock import ALWAYS, Span, Timed
from .folders import lora_name, lora_path, lora_state
from .keys import NameTable, names_of
from .loud import too_loud
from .patching import Apply, How, apply_chain
from .reading import read_lora

_SPARE = 2 * 2**30


def _memory_is_tight() -> bool:
    return comfy.model_management.get_free_memory(torch.device("cpu")) < _SPARE


_FILES = Store(_memory_is_tight, reader=read_lora)


@dataclass(frozen=True)
class Entry(Weighted):
    """A stack entry; `unmatched` are the file's names that the connected models do not have, `factors` what layers are
    at that a per-block strength names, `span` the part of sampling that it is on for, `misfits` the file's layers that
    have another shape in the models."""

    unmatched: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    span: Span = ALWAYS
    misfits: tuple[Misfit, ...] = ()

    def strength_of(self, layer: str) -> float:
        return super().strength_of(layer) * self.factors.get(layer, 1.0)

    def report(self, has_text: bool) -> str:
        line = f"{self.name}: {layers_of(self.adapter)} at {self.strength:g} / {self.text_strength:g}"
        if self.factors:
            off = sum(not self.factors.get(layer, 1.0) for layer in self.adapter.layers)
            line += f", with strengths per block ({off} layers off)"
        if self.span != ALWAYS:
            line += f", from {self.span[0]:g} to {self.span[1]:g} of sampling"
        if off := off_layers(self.adapter):
            line += f", {off} of them switched off in the file (alpha 0)"
        beside = strays.told(self.adapter.left_out) if self.adapter.left_out else ""
        return "; ".join(filter(None, (line, beside, lacking(self.unmatched, has_text), left_out(self.misfits))))


def layers_of(adapter: Adapter) -> str:
    """`12 layers`, with the kinds where some are no plain LoRA: `12 layers (8 DoRA, 4 LoRA)`."""
    kinds = adapter.kinds()
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{kinds.total()} layers" + (f" ({named})" if kinds.keys() - {"LoRA"} else "")


def off_layers(adapter: Adapter) -> int:
    """How many layers their file switches off."""
    return sum(not layer.alpha for layer in adapter.layers.values())


@dataclass(frozen=True)
class Applied:
    """MODEL and CLIP with a stack on them; `triggers` are the words of its active rows, separated by commas."""

    model: Any
    clip: Any
    rows: list[Row]
    report: str
    triggers: str


def rows_of(stack: Iterable | None) -> list[Row]:
    """The rows of a LORA_STACK as other packs hold them."""
    return stack_entries.read(stack)[0]


def active(rows: Iterable[Row]) -> list[Row]:
    """Rows that name a file and are on, under the names that ComfyUI's lists have."""
    return [_listed(row) for row in rows if row.name not in ("", NONE) and row.on]


def load_rows(rows: Iterable[Row], table: NameTable) -> list[Entry]:
    """Read and resolve every row. Rows whose strengths are both zero are not read."""
    return [_load(row, table) for row in _on(rows)]


def check_rows(names: Iterable[str | None], text: str | None = "") -> bool | str:
    """True, or one sentence about the first file that is missing or unsafe, or the first fault in the text of rows;
    links (None) are not known yet."""
    try:
        for row in parse(text or ""):
            if row.active:
                guard.inspect(lora_path(row.name))
        for name in names:
            if name and name != NONE:
                guard.inspect(lora_path(name))
    except ValueError as error:
        return str(error)
    return True


def rows_state(text: str | None) -> list:
    """Name, size and time of every file that a text of rows names."""
    try:
        return [lora_state(row.name) for row in parse(text or "")]
    except ValueError:
        return []


def ignored_by(text: str | None) -> list[str]:
    """The nodes that take `lora_stack` and do not read all that a text of rows says."""
    try:
        rows = parse(text or "")
    except ValueError:
        return []
    return [] if all(row.plain for row in rows) else attribution.plain_readers() or []


def apply_stack(model, clip, stack: Iterable | None, own: Iterable[Row], apply: Apply = "auto") -> Applied:
    """The rows of a LORA_STACK, then one's own, applied as their exact sum."""
    handed_on, notes = stack_entries.read(stack)
    before = active(handed_on)
    rows = [*before, *active(own)]
    entries = load_rows(rows, names_of(model, clip))
    patched, text, how = apply_entries(model, clip, entries, apply)
    makers = [attribution.entry_of(row, entry.adapter.metadata) for row, entry in zip(_on(rows), entries, strict=True)]
    attribution.attach(patched, makers)
    attribution.tell(makers)
    found = (
        *stack_entries.lost(rows, attribution.plain_readers()),
        *_doubled(model, before),
        *too_loud(entries, model, clip),
        *of_stack([entry for entry in entries if entry.span == ALWAYS]),
    )
    report = "\n".join(filter(None, (describe(entries, clip is not None), str(how), *notes, *found)))
    for each in uncalled(patched, text):
        each.reported = each.reported or report
    words = unique(word for entry in entries for word in trigger_words(entry.adapter.metadata))
    return Applied(patched, text, rows, report, ", ".join(words))


def _doubled(model, before: Iterable[Row]) -> list[str]:
    """A sentence when rows of a LORA_STACK are on the MODEL already, as when both come from the stack before."""
    there = {each["name"] for each in attribution.attached(model)}
    names = [row.name for row in _on(before) if row.name.replace("\\", "/") in there]
    if not names:
        return []
    return [
        f"warning: applied twice: {', '.join(names)}. The connected MODEL already has what lora_stack adds: of another "
        "stack, connect either MODEL or lora_stack, not both"
    ]


def apply_entries(model, clip, entries: Sequence[Entry], apply: Apply = "auto") -> tuple[Any, Any, How]:
    """MODEL and CLIP with the entries' exact sum, each on the model for its part of sampling. A text is encoded before
    sampling, so that it is changed for all of it."""
    always = [entry if entry.span == ALWAYS else replace(entry, strength=0.0) for entry in entries]
    spans: dict[str, list[Timed]] = {}
    for entry in entries:
        for layer, steps in chain([replace(entry, text_strength=0.0)] if entry.span != ALWAYS else []).items():
            spans.setdefault(layer, []).extend(Timed(step, entry.span) for step in steps)
    return apply_chain(model, clip, chain(always), apply, spans)


def describe(entries: Sequence[Entry], has_text: bool) -> str:
    """One line per entry: layers, strengths, and what of the file did not apply."""
    return "\n".join(entry.report(has_text) for entry in entries) or "no LoRA is switched on"


def _on(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.active]


def _listed(row: Row) -> Row:
    """A row at strength 0 may name what is not there: it is not read."""
    return row.renamed(lora_name(row.name)) if row.active else row


def _load(row: Row, table: NameTable) -> Entry:
    path = lora_path(row.name)
    resolved = table.resolve(_FILES.read(path), path.name)
    factors = strengths(row.blocks, [*table.shapes, *table.parameters], table.family.name) if row.blocks.strip() else {}
    return Entry(
        path.stem, resolved.adapter, row.strength, row.text_strength, resolved.unmatched, factors,
        (row.start, row.end), resolved.misfits,
    )  # fmt: skip
