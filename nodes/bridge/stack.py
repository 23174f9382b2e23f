"""From rows of names and strengths to adapters in the model's own layer names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...lora_core.files import formats, guard
from ...lora_core.merging.exact_sum import Weighted, exact_sum
from .folders import NONE, lora_path
from .keys import NameTable
from .patching import apply_layers

Row = tuple[str, float, float]


@dataclass(frozen=True)
class Entry(Weighted):
    """A stack entry; `unmatched` are the file's names that the connected models do not have."""

    unmatched: tuple[str, ...] = ()

    def report(self, has_text: bool) -> str:
        line = f"{self.name}: {len(self.adapter.layers)} layers at {self.strength:g} / {self.text_strength:g}"
        if not self.unmatched:
            return line
        text_only = not has_text and all(name.startswith(("lora_te", "text_encoder")) for name in self.unmatched)
        reason = "text layers; connect CLIP" if text_only else f"not in this model, for example {self.unmatched[0]}"
        return f"{line}; {len(self.unmatched)} not applied ({reason})"


def rows_of(stack: Iterable | None) -> list[Row]:
    """The rows of a LORA_STACK as other packs hold them: tuples or lists of at least (name, model, text strength)."""
    rows = []
    for entry in stack or []:
        if not isinstance(entry, (tuple, list)) or len(entry) < 3:
            raise ValueError(f"a LORA_STACK entry is {entry!r}; expected (name, model strength, text strength)")
        rows.append((str(entry[0]), float(entry[1]), float(entry[2])))
    return active(rows)


def active(rows: Iterable[Row]) -> list[Row]:
    """Rows that name a file."""
    return [row for row in rows if row[0] and row[0] != NONE]


def load_rows(rows: Iterable[Row], table: NameTable) -> list[Entry]:
    """Read and resolve every row. Rows whose strengths are both zero are not read."""
    return [_load(name, model, text, table) for name, model, text in rows if model or text]


def check_rows(names: Iterable[str | None]) -> bool | str:
    """True, or one sentence about the first file that is missing or unsafe; links (None) are not known yet."""
    try:
        for name in names:
            if name and name != NONE:
                guard.inspect(lora_path(name))
    except ValueError as error:
        return str(error)
    return True


def apply_rows(model, clip, rows: Sequence[Row]):
    """MODEL and CLIP with the rows' exact sum applied, and a report."""
    table = NameTable(model, clip)
    entries = load_rows(rows, table)
    return *apply_layers(model, clip, exact_sum(entries)), describe(entries, clip is not None)


def describe(entries: Sequence[Entry], has_text: bool) -> str:
    """One line per entry: layers, strengths, and what of the file did not apply."""
    return "\n".join(entry.report(has_text) for entry in entries) or "no LoRA is switched on"


def _load(name: str, strength: float, text_strength: float, table: NameTable) -> Entry:
    path = lora_path(name)
    resolved = table.resolve(formats.read(path), path.name)
    return Entry(path.stem, resolved.adapter, strength, text_strength, resolved.unmatched)
