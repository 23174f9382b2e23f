"""The LoRAs that a node is given, rows of files and adapters from the graph, in the model's own layer names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ....lora_core.adapter import Adapter, layers_of, off_layers
from ....lora_core.families.blocks import strengths
from ....lora_core.files import guard, strays
from ....lora_core.files.mismatch import Misfit, lacking, left_out
from ....lora_core.files.store import Store
from ....lora_core.files.words import trigger_words
from ....lora_core.stack import foreign_rows
from ....lora_core.stack.regions import Region, check_masks, regions_of
from ....lora_core.stack.rows import LIMIT, NONE, Row, parse
from ....lora_core.stack.weighted import Weighted
from ....lora_core.trust.takedown import Verdict
from ..host import takedown
from ..host.device import unused
from ..host.folders import lora_name, lora_path, lora_state
from ..host.lora_files import read_lora
from ..host.wires import Clip, LoraStack, Model
from ..model.names import NameTable, names_of
from ..model.spans import ALWAYS, Span

MASK = "mask"  # what the inputs of masks begin with
_SPARE = 2 * 2**30  # bytes of RAM below which no file is kept


def _memory_is_tight() -> bool:
    return unused(torch.device("cpu")) < _SPARE


_FILES = Store(_memory_is_tight, reader=read_lora)


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
class Entry(Weighted):
    """A stack entry; `unmatched` are the file's names that the connected models do not have, `factors` what layers are
    at that a per-block strength names, `span` the part of sampling that it is on for, `misfits` the file's layers that
    have another shape in the models, `words` its trigger words where its row names them, `verdict` what takedown lists
    say of its file that a person has overruled, `region` the part of the picture that it is on in, None for all."""

    unmatched: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    span: Span = ALWAYS
    misfits: tuple[Misfit, ...] = ()
    words: tuple[str, ...] | None = None
    verdict: Verdict = Verdict()
    region: Region | None = None

    @property
    def partial(self) -> bool:
        """Return whether it is on for only a part of sampling, or of the picture."""
        return self.span != ALWAYS or self.region is not None

    @property
    def triggers(self) -> tuple[str, ...]:
        return trigger_words(self.adapter.metadata) if self.words is None else self.words

    def strength_of(self, layer: str) -> float:
        return super().strength_of(layer) * self.factors.get(layer, 1.0)

    def report(self, has_text: bool) -> str:
        line = f"{self.name}: {layers_of(self.adapter)} at {self.strength:g} / {self.text_strength:g}"
        if self.factors:
            off = sum(not self.factors.get(layer, 1.0) for layer in self.adapter.layers)
            line += f", with strengths per block ({off} layers off)"
        if self.span != ALWAYS:
            line += f", from {self.span[0]:g} to {self.span[1]:g} of sampling"
        if self.region:
            line += f", in {self.region.name} ({100 * self.region.share:.0f} % of the picture)"
        if off := off_layers(self.adapter):
            line += f", {off} of them switched off in the file (alpha 0)"
        beside = strays.left_out_note(self.adapter.left_out) if self.adapter.left_out else ""
        return "; ".join(filter(None, (line, beside, lacking(self.unmatched, has_text), left_out(self.misfits))))


def rows_of(stack: LoraStack | None) -> list[Row]:
    """Return the rows of a LORA_STACK as other packs hold them."""
    return foreign_rows.read(stack)[0]


def active(rows: Iterable[Row]) -> list[Row]:
    """Rows that name a file and are on, under the names that ComfyUI's lists have."""
    return [_listed(row) for row in rows if row.name not in ("", NONE) and row.on]


def load_rows(rows: Iterable[Row], table: NameTable, broken: bool = False) -> list[Entry]:
    """Read and resolve every row; `broken` ones may hold NaN or infinite values. Rows whose strengths are both zero are
    not read. Raises ValueError for a file that a takedown list names."""
    return [_load(row, table, broken) for row in effective(rows)]


def placed(rows: Iterable[Row], masks: Mapping[str, torch.Tensor | None]) -> list[Row]:
    """Return the rows with the regions that their masks are, by the names of the node's inputs. Raises ValueError for a
    mask that is not connected, or none."""
    given = {_number(name): mask for name, mask in masks.items() if mask is not None}
    found = [*rows]
    regions = regions_of([row.mask for row in found if row.mask and row.active], given)
    return [row.changed(region=regions.get(row.mask)) for row in found]


def _number(name: str) -> int:
    return int(name.removeprefix(MASK))


def check_rows(
    names: Iterable[str | None], text: str | None = "", masks: Mapping[str, Any] | None = None
) -> bool | str:
    """True, or one sentence about the first file that is missing or unsafe, or the first fault in the text of rows;
    links (None) are not known yet. Of `masks` the names are known."""
    try:
        for row in parse(text or ""):
            if row.active and row.mask:
                check_masks([row.mask], {_number(name): None for name in masks or ()})
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


def effective(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of which one strength at least is not 0."""
    return [row for row in rows if row.active]


def _listed(row: Row) -> Row:
    """A row at strength 0 may name what is not there: it is not read."""
    return row.renamed(lora_name(row.name)) if row.active else row


def _load(row: Row, table: NameTable, broken: bool) -> Entry:
    path = lora_path(row.name)
    file = read_lora(path, broken) if broken else _FILES.read(path)
    resolved = table.resolve(file, path.name)
    verdict = takedown.checked(row.name, file, resolved.adapter)
    factors = strengths(row.blocks, [*table.shapes, *table.parameters], table.family.name) if row.blocks.strip() else {}
    return Entry(
        path.stem, resolved.adapter, row.strength, row.text_strength, unmatched=resolved.unmatched, factors=factors,
        span=(row.start, row.end), misfits=resolved.misfits, words=row.words, verdict=verdict, region=row.region,
    )  # fmt: skip


def adapter_entry(given: Connected, name: str, table: NameTable) -> Entry:
    """Return an adapter from the graph in the model's layer names."""
    resolved = table.resolve(given.adapter, name)
    strengths = given.strength, given.text_strength
    return Entry(name, resolved.adapter, *strengths, resolved.unmatched, misfits=resolved.misfits)


def all_entries(model: Model, clip: Clip | None, rows: Iterable[Row], adapters: Sequence[Connected]) -> list[Entry]:
    """Return rows, then adapters, in the model's layer names. Raises ValueError when there is none."""
    table = names_of(model, clip)
    added = [adapter_entry(given, given.name(number), table) for number, given in enumerate(adapters, 1)]
    entries = [*load_rows(rows, table), *added]
    if not entries:
        raise ValueError("no LoRA is connected; connect an adapter or a lora_stack")
    return entries
