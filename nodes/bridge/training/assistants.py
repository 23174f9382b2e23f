"""The assistants of a run: LoRAs of a LORA_STACK that are on in its steps, and in nothing that comes of it.

What a LoRA was trained beside is no part of it, and it needs none of it where it is used, unlike what it was learned on
(`ancestors.learned_on`). So assistants are named in its header, with their licences, but are no parents, and no rights
to them are rights to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from ....lora_core.files.hashes import data_hash
from ....lora_core.files.lineage import Parent
from ....lora_core.files.mismatch import lacking, left_out
from ....lora_core.low_rank import LowRank
from ....lora_core.stack import foreign_rows
from ....lora_core.stack.rows import Row
from ....lora_core.stack.weighted import check_finite, terms_of
from ....lora_core.training.assistants import Assisting
from ....lora_core.training.targets import layer_kind
from ..host.folders import lora_path
from ..host.wires import Model
from ..model.names import names_of
from ..model.spans import ALWAYS
from ..stack.entries import Entry, active, effective, load_rows

_TOLD = ("name", "sha256", "strength", "blocks", "author", "license")
_FP32 = 4  # bytes


@dataclass(frozen=True)
class Assistants:
    """LoRAs of a MODEL's own layer names, none for a run without; `files` are what is told of each, JSON throughout,
    and `notes` what stays on the node."""

    entries: tuple[Entry, ...] = ()
    files: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def terms(self) -> dict[str, tuple[LowRank, ...]]:
        """Return what is added to each layer."""
        return terms_of(self.entries)

    def identity(self) -> list[dict[str, Any]]:
        """Return, as plain values, what decides the bytes of a run; empty for one without."""
        return [{key: each[key] for key in ("sha256", "strength", "blocks") if key in each} for each in self.files]

    def names(self) -> list[str]:
        return [each["name"] for each in self.files]

    def in_words(self) -> list[str]:
        """Return a line for each, short, with the first digits of its hash."""
        return [f"{each['name']} {each['sha256'][:8]} at {each['strength']:g}" for each in self.files]

    def bytes(self) -> int:
        """Return the memory that they take, with the copies in the type of the network."""
        factors = (factor for own in self.terms.values() for term in own for factor in (term.lora_A, term.lora_B))
        return sum(2 * _FP32 * factor.numel() for factor in factors)

    def beside(self, network: nn.Module, device: Any) -> Assisting:
        return Assisting(self.terms, {name: network.get_submodule(name) for name in self.terms}, device)


def read_assistants(stack: Iterable[Any] | None, model: Model) -> Assistants:
    """Return the LoRAs of a LORA_STACK, as they correct the MODEL; what they have for text encoders is left out.

    Raises ValueError for one that is not for this MODEL, is no plain LoRA of linear layers and convolutions, or is on
    for only a part of sampling.
    """
    rows, notes = foreign_rows.read(stack)
    used = [row.changed(text_strength=0.0) for row in active(rows)]
    entries = load_rows(used, names_of(model, None))
    check_finite(entries)
    for entry in entries:
        _check(entry, model)
    files = [_told(row, entry) for row, entry in zip(effective(used), entries, strict=True)]
    found = Assistants(tuple(entries), tuple(files))
    return replace(found, notes=(*notes, *_notes(found))) if files else Assistants(notes=tuple(notes))


def _check(entry: Entry, model: Model) -> None:
    if entry.span != ALWAYS:
        raise ValueError(
            f"the assistant {entry.name} is on from {entry.span[0]:g} to {entry.span[1]:g} of sampling, but assistants "
            "are on in every step; set its start to 0 and its end to 1"
        )
    if entry.region:
        raise ValueError(
            f"the assistant {entry.name} is on in {entry.region.name} only, but assistants are on in the whole "
            "picture; take mask= out of its row"
        )
    if kinds := [kind for kind in entry.adapter.kinds() if kind != "LoRA"]:
        raise ValueError(
            f"the assistant {entry.name} holds {' and '.join(kinds)} weights, but an assistant must be plain LoRA; "
            "convert it with Convert LoRA first"
        )
    odd = [name for name in entry.adapter.layers if layer_kind(model.model.get_submodule(name)) is None]
    if odd:
        raise ValueError(
            f"the assistant {entry.name} changes {odd[0]}, which is neither a linear layer nor a plain convolution; "
            "choose another file"
        )


def _told(row: Row, entry: Entry) -> dict[str, Any]:
    path = lora_path(row.name)
    told = Parent.of(entry.name, entry.adapter.metadata, entry.strength, entry.strength, data_hash(path))
    return {key: value for key, value in replace(told, blocks=row.blocks).described().items() if key in _TOLD}


def _notes(found: Assistants) -> list[str]:
    names = ", ".join(f"{each['name']} at {each['strength']:g}" for each in found.files)
    said = [f"assistants, on in training steps only: {names}; not in previews, validation and the result"]
    for entry in found.entries:
        said += entry.verdict.lines(entry.name)
        missing = filter(None, (lacking(entry.unmatched, has_text=False), left_out(entry.misfits)))
        said += [f"assistant {entry.name}: {part}" for part in missing]
    return said
