"""Writes what a merge says of itself: what went in, what came out, and the error of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.files import lineage
from ....lora_core.files.lineage import Parent
from ....lora_core.files.mismatch import lacking, left_out
from ....lora_core.merging import SUM
from ....lora_core.merging.chart import as_range
from ....lora_core.merging.merge import Merged
from ....lora_core.merging.settings import MergeSettings
from ....lora_core.percent import percent
from ..stack.entries import Entry
from .sources import Source


def in_order_line(beside: Source) -> list[str]:
    told = beside.converted or {}
    kinds = " and ".join(kind for kind in told["kinds"] if kind != "LoRA")
    return [
        f"{len(beside.entry.adapter.layers)} layers are changed by {kinds} together with other LoRAs and are merged in "
        f"the order of the stack, relative error {percent(told['error'])}"
    ]


def vectors_line(vectors: Mapping[str, Any]) -> list[str]:
    first = next(iter(vectors))
    return [f"{len(vectors)} biases and norms are added exactly and are in the file, for example {first}"]


def merge_report(
    merged: Merged, settings: MergeSettings, parts: Sequence[Entry], parents: Sequence[Parent], notes: Sequence[str],
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
    lines = [f"  {percent(errors[layer])}  {layer}" for layer in worst]
    return [f"relative error of {name}, converted to plain LoRA, per layer:", *lines] if worst else []


def size_line(merged: Merged) -> str:
    ranks = [layer.rank for layer in merged.layers.values()]
    size = sum(layer.num_parameters() for layer in merged.layers.values())
    return f"{len(ranks)} layers, rank {as_range(ranks)}, {size:,} parameters, {2 * size / 1e6:.1f} MB as fp16"


def _part_line(part: Entry) -> str:
    has_text = any(name.startswith(TEXT_PREFIX) for name in part.adapter.layers)
    line = f"{part.name} x {part.strength:g}" + (f", text {part.text_strength:g}" if has_text else "")
    return "; ".join(filter(None, (line, lacking(part.unmatched), left_out(part.misfits))))


def cut_notes(merged: Merged, settings: MergeSettings) -> list[str]:
    """Say in sentences what a person has to know beside size and error: how far a method goes, and what is left out."""
    said = []
    if settings.method != SUM and len(merged.errors) > merged.lone:
        said.append(f"{settings.method} is {merged.departure:.1%} away from the exact sum.")
    if gone := [name for name in merged.errors if name not in merged.layers and name not in merged.cancelled]:
        said.append(f"{len(gone)} of the least important layers are left out to reach this size.")
    if merged.cancelled:
        said.append(f"{len(merged.cancelled)} layers cancel out and are not in the LoRA.")
    return said


def _method_lines(merged: Merged, settings: MergeSettings, parts: int, converted: bool) -> list[str]:
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
