"""Put a stack on a MODEL and CLIP: the rows of a LORA_STACK, then one's own, as their exact sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ....lora_core.analysis.findings import of_stack
from ....lora_core.files.words import unique
from ....lora_core.stack import foreign_rows
from ....lora_core.stack.chain import chain
from ....lora_core.stack.regions import costs
from ....lora_core.stack.rows import Row, parse
from ..host import picture_metadata
from ..host.folders import lora_path
from ..host.wires import Clip, Model
from ..model.names import names_of
from ..model.spans import Timed
from ..trust import ancestors
from ..trust.told import Loaded, told
from .apply_chain import Apply, How, Text, apply_chain
from .bypass_injection import uncalled
from .embeddings import with_embeddings
from .entries import Entry, active, effective, load_rows, placed
from .loudness import too_loud


@dataclass(frozen=True)
class Applied:
    """MODEL and CLIP with a stack on them; `triggers` are the words of its active rows, separated by commas."""

    model: Model
    clip: Clip | None
    rows: list[Row]
    report: str
    triggers: str


def ignored_by(text: str | None) -> list[str]:
    """The nodes that take `lora_stack` and do not read all that a text of rows says."""
    try:
        rows = parse(text or "")
    except ValueError:
        return []
    return [] if all(row.plain for row in rows) else picture_metadata.plain_readers() or []


def apply_stack(
    model: Model, clip: Clip | None, stack: Iterable | None, own: Iterable[Row], apply: Apply = "auto",
    masks: Mapping[str, Tensor | None] | None = None,
) -> Applied:  # fmt: skip
    """Return the rows of a LORA_STACK, then one's own, applied as their exact sum; `masks`, by the names of the node's
    inputs, are those of one's own rows."""
    handed_on, notes = foreign_rows.read(stack)
    before = active(handed_on)
    rows = [*before, *placed(active(own), masks or {})]
    entries = load_rows(rows, names_of(model, clip))
    patched, text, how = apply_entries(model, clip, entries, apply)
    text, offered = with_embeddings(text, entries)
    makers = [
        picture_metadata.entry_of(row, entry.adapter.metadata, entry.verdict.overruled())
        for row, entry in zip(effective(rows), entries, strict=True)
    ]
    files = [
        Loaded(row, lora_path(row.name), entry.adapter.metadata, maker["sha256"])
        for row, entry, maker in zip(effective(rows), entries, makers, strict=True)
    ]
    picture_metadata.attach(patched, makers)
    ancestors.attach(patched, [each.parent for each in files])
    picture_metadata.tell(makers)
    found = (
        *foreign_rows.lost(rows, picture_metadata.plain_readers()),
        *_doubled(model, before),
        *offered,
        *(line for entry in entries for line in entry.verdict.lines(entry.name)),
        *too_loud(entries, model, clip),
        *told(files, model),
        *of_stack([entry for entry in entries if not entry.partial]),
    )
    places = dict.fromkeys(entry.region for entry in entries if entry.region and entry.strength)
    told_of = describe(entries, clip is not None), str(how), *costs([*places]), *notes, *found
    report = "\n".join(filter(None, told_of))
    for each in uncalled(patched, text):
        each.reported = each.reported or report
    words = unique(word for entry in entries for word in entry.triggers)
    return Applied(patched, text, rows, report, ", ".join(words))


def _doubled(model: Model, before: Iterable[Row]) -> list[str]:
    """A sentence when rows of a LORA_STACK are on the MODEL already, as when both come from the stack before."""
    there = {each["name"] for each in picture_metadata.attached(model)}
    names = [row.name for row in effective(before) if row.name.replace("\\", "/") in there]
    if not names:
        return []
    return [
        f"warning: applied twice: {', '.join(names)}. The connected MODEL already has what lora_stack adds: of another "
        "stack, connect either MODEL or lora_stack, not both"
    ]


def apply_entries(model: Model, clip: Text, entries: Sequence[Entry], apply: Apply = "auto") -> tuple[Model, Text, How]:
    """MODEL and CLIP with the entries' exact sum, each on the model for its part of sampling and of the
    picture. A text is encoded before sampling, so that it is changed for all of both."""
    always = [replace(entry, strength=0.0) if entry.partial else entry for entry in entries]
    spans: dict[str, list[Timed]] = {}
    for entry in filter(lambda entry: entry.partial, entries):
        for layer, steps in chain([replace(entry, text_strength=0.0)]).items():
            spans.setdefault(layer, []).extend(Timed(step, entry.span, entry.region) for step in steps)
    return apply_chain(model, clip, chain(always), apply, spans)


def describe(entries: Sequence[Entry], has_text: bool) -> str:
    """Return one line per entry: layers, strengths, and what of the file did not apply."""
    return "\n".join(entry.report(has_text) for entry in entries) or "no LoRA is switched on"
