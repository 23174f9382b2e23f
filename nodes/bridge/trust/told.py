"""Tells what a stack says of its files before they are applied: contracts, signatures, takedown lists."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....lora_core.files import side_files
from ....lora_core.files.lineage import Parent, rights_in
from ....lora_core.files.permissions import settled
from ....lora_core.stack.rows import Row
from ....lora_core.trust.contract import contract_of
from ....lora_core.trust.stack_lines import Base, Signed, lines
from ..host.model_files import file_name, files_of, on_record
from ..host.wires import Model
from . import receipts


@dataclass(frozen=True)
class Loaded:
    """A row with its file, the file's header and the sha256 of its data section."""

    row: Row
    path: Path
    metadata: Mapping[str, str]
    sha256: str

    @property
    def parent(self) -> Parent:
        """Return the file as a parent of what is made with it."""
        row = self.row
        return Parent.of(self.path.stem, self.metadata, row.strength, row.text_strength, self.sha256)


def told_of(row: Loaded) -> list[str]:
    """Return what is to be said of one file, whatever stands beside it in the stack."""
    return receipts.lines(row.row.name, row.path, row.metadata)


def told(rows: Sequence[Loaded], model: Model) -> list[str]:
    """Return the lines of all rows, then what is true of all together."""
    return [*(line for row in rows for line in told_of(row)), *lines([*map(_signed, rows)], base_of(model))]


def base_of(model: Model) -> Base:
    """Return the file of a MODEL by what is on record: nothing is read, as a base model is large."""
    path = next(iter(files_of(model)), "")
    size, time, digest = on_record("model_hashes.json").get(path, (0, 0, "")) if path else (0, 0, "")
    try:
        found = os.stat(path)
    except OSError:
        return Base(file_name(path))
    return Base(file_name(path), digest if (found.st_size, found.st_mtime_ns) == (size, time) else "")


def _signed(loaded: Loaded) -> Signed:
    about = loaded.metadata
    rights = rights_in(about)
    if not rights.licence:
        rights = settled(rights, side_files.told(loaded.path).answers.rights())
    return Signed(loaded.path.stem, _strongest(loaded.row), contract_of(about), rights)


def _strongest(row: Row) -> float:
    return max(row.strength, row.text_strength, key=abs)
