"""Reads what other packs put into a LORA_STACK as rows: tuples and lists of three or more, and dicts; and tells what
they miss.

`(name, model strength, text strength)` is what Efficiency, Comfyroll, Easy-Use and Lora-Manager exchange; LoRA
Optimizer adds fields, or writes dicts; dicts of rgthree's rows are `{on, lora, strength, strengthTwo}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..files.faults import quote
from .rows import NONE, Row, strength_of

_NAMES = ("name", "lora_name", "lora", "file_name", "file", "path")
_STRENGTHS = ("strength", "model_strength", "strength_model", "weight", "model_weight")
_TEXT_STRENGTHS = ("text_strength", "clip_strength", "strength_clip", "clipStrength", "strengthTwo", "clip_weight")
_SWITCHES = ("on", "active", "enabled")
_KNOWN = {*_NAMES, *_STRENGTHS, *_TEXT_STRENGTHS, *_SWITCHES}


def read(stack: Iterable[Any] | None) -> tuple[list[Row], list[str]]:
    """Return the rows of a stack, and a sentence about each thing in it that is passed over.

    Raises ValueError for an entry that cannot be read as a row: what it meant would be missing from the picture.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for number, entry in enumerate(stack or (), 1):
        where = f"lora_stack entry {number}"
        try:
            row, extra = entry if isinstance(entry, Row) else None, ""
            if row is None:
                row, extra = _from_dict(entry) if isinstance(entry, Mapping) else _from_sequence(entry)
        except ValueError as error:
            raise ValueError(f"{where} is {quote(repr(entry))}: {error}") from None
        if row.name in ("", NONE):
            notes.append(f"{where} is ignored: it has no file name")
        elif not row.on:
            notes.append(f"{where} is ignored: {row.name} is switched off")
        else:
            rows.append(row)
            notes += [f"{where}, {row.name}: {extra} is ignored, because it is unknown here"] if extra else []
    return rows, notes


def lost(rows: Iterable[Row], others: Sequence[str] | None) -> list[str]:
    """A sentence when what rows say is not read where a `lora_stack` goes: to `others`, nodes of other packs, None when
    they are not known."""
    found = [row for row in rows if row.active and not row.plain]
    if not found or others == []:
        return []
    if others is None:
        return ["through lora_stack, only nodes of LoRA Loom receive blocks, start, end and masks"]
    blocks = ", ".join(row.name for row in found if row.blocks.strip())
    spans = ", ".join(row.name for row in found if (row.start, row.end) != (0.0, 1.0))
    masks = ", ".join(row.name for row in found if row.mask)
    parts = ("blocks", blocks), ("start and end", spans), ("the mask", masks)
    said = " and ".join(f"{what} of {names}" for what, names in parts if names)
    return [
        f"{said} have no effect in {', '.join(others)}: other packs read only a name and two strengths from "
        "lora_stack, and apply them to every block, all of sampling and the whole picture; connect MODEL of this node "
        "instead"
    ]


def _from_sequence(entry: Any) -> tuple[Row, str]:
    if not isinstance(entry, Sequence) or isinstance(entry, (str, bytes)) or len(entry) < 3:
        raise ValueError("expected (name, model strength, text strength), or a dict with name and strength")
    name, strength, text, *more = entry
    return _row(name, strength, text), ", ".join(quote(str(value)) for value in more)


def _from_dict(entry: Mapping[Any, Any]) -> tuple[Row, str]:
    name = next((entry[key] for key in _NAMES if isinstance(entry.get(key), str)), None)
    strength = _first(entry, _STRENGTHS)
    if name is None or strength is None:
        raise ValueError("expected a dict with name and strength")
    on = bool(_first(entry, _SWITCHES) in (None, True, 1))
    extra = sorted(str(key) for key in entry if key not in _KNOWN)
    return _row(name, strength, _first(entry, _TEXT_STRENGTHS), on), ", ".join(extra)


def _first(entry: Mapping[Any, Any], keys: Iterable[str]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _row(name: Any, strength: Any, text: Any, on: bool = True) -> Row:
    if name in (None, "", NONE):
        return Row(NONE, 0.0, 0.0)
    strength = strength_of(strength, "the strength")
    text = strength if text is None else strength_of(text, "the text strength")
    return Row(str(name), strength, text, on=on)
