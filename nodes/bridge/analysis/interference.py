"""Finds what the LoRAs of a stack do to each other: measured from their factors, and shown by leaving each one out."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import comfy.model_management
from PIL import Image

from ....lora_core.analysis import findings
from ....lora_core.analysis.heat_map import heat_map
from ....lora_core.analysis.interference import measure
from ....lora_core.analysis.interference_table import interference_measure
from ....lora_core.analysis.layer_sum import FigureSettings
from ....lora_core.drawing.measure import Measure
from ....lora_core.families.distilled import few_step_mark
from ....lora_core.files import mismatch, strays
from ....lora_core.stack.rows import Row
from ....lora_core.stack.weighted import check_finite
from ..host.device import with_fp64
from ..host.model_files import file_name, files_of
from ..host.progress import Progress
from ..host.wires import Clip, LoraStack, Model
from ..model.base_figures import Base
from ..model.spans import ALWAYS
from ..stack.entries import Connected, Entry, active, all_entries, rows_of
from ..stack.loudness import too_loud


@dataclass(frozen=True)
class Measured:
    """`strengths` are those suggested for the connected adapters, or for the rows when there is no adapter."""

    heat_map: Image.Image
    report: str
    strengths: str
    rows: list[Row]
    figures: str
    measure: Measure


def interference(
    model: Model, clip: Clip | None, lora_stack: LoraStack | None, adapters: Sequence[Connected]
) -> Measured:
    """Return all figures of a stack. The base model's norms are worked out the first time, one weight after another."""
    rows = active(rows_of(lora_stack))
    entries = all_entries(model, clip, rows, adapters)
    check_finite(entries)
    layers = list(dict.fromkeys(name for entry in entries for name in entry.adapter.layers if entry.strength_of(name)))
    progress, base = Progress(4 * len(layers)), Base(model, clip)
    done = iter(range(1, 8 * len(layers) + 1))

    def tick() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(min(next(done), 4 * len(layers)))

    progress.say("measuring the base model (once per model)")
    norms, attention = base.norms(layers, tick), base.attention(layers, tick)
    progress.say(f"{len(entries)} LoRAs, {len(layers)} layers")
    found = measure(entries, attention, FigureSettings(with_fp64(base.device), tick))
    fixed = _few_steps(entries, model)
    factor = findings.suggested(found, fixed)
    changed = [_scaled(entry, 1.0 if index in fixed else factor) for index, entry in enumerate(entries)]
    picture, loud = heat_map(found, norms), [f"{line}." for line in too_loud(entries, model, clip)]
    shown = interference_measure(found, norms, fixed)
    said = findings.report(found, norms, fixed), *_not_measured(entries), *_unknown(layers, norms)
    progress.update(4 * len(layers))
    return Measured(
        picture,
        "\n".join([*loud, *said]),
        ", ".join(f"{strength:.4g}" for strength, _ in (changed[-len(adapters) :] if adapters else changed)),
        _suggested_rows(rows, changed),
        json.dumps(findings.figures(found, norms, fixed), indent=1),
        replace(shown, advice=" ".join([*loud, shown.advice])),
    )


def _few_steps(entries: Sequence[Entry], model: Model) -> dict[int, str]:
    """LoRAs that make a model draw in few steps, which work at their own strength alone. Of a base model that is itself
    made for few steps, every LoRA may bear its name."""
    if few_step_mark(*map(file_name, files_of(model))):
        return {}
    marks = {index: few_step_mark(entry.name) for index, entry in enumerate(entries)}
    return {index: f"by its name it is made for few sampling steps ({mark})" for index, mark in marks.items() if mark}


def _scaled(entry: Entry, factor: float) -> tuple[float, float]:
    return round(entry.strength * factor, 4), round(entry.text_strength * factor, 4)


def _suggested_rows(rows: Sequence[Row], strengths: Sequence[tuple[float, float]]) -> list[Row]:
    suggested = iter(strengths)
    return [_at(row, *next(suggested)) if row.active else row for row in rows]


def _at(row: Row, strength: float, text_strength: float) -> Row:
    return row.changed(strength=strength, text_strength=text_strength)


def _not_measured(entries: Sequence[Entry]) -> list[str]:
    said = []
    for index, entry in enumerate(entries):
        if others := {kind: count for kind, count in entry.adapter.kinds().items() if kind != "LoRA"}:
            held = ", ".join(f"{count} {kind}" for kind, count in others.items())
            said.append(f"{findings.letter(index)} also holds {held} weights, which are not included in these figures.")
        if entry.span != ALWAYS:
            said.append(f"{findings.letter(index)} is on for only part of sampling; the figures apply to that part.")
        if entry.region:
            said.append(
                f"{findings.letter(index)} is on in {entry.region.name} only; the figures apply to that part of the "
                "picture."
            )
        if entry.adapter.left_out:
            said.append(f"{findings.letter(index)}: {strays.left_out_note(entry.adapter.left_out)}.")
        if entry.unmatched:
            said.append(
                f"{findings.letter(index)} has {len(entry.unmatched)} layers that the connected models do not have."
            )
        if entry.misfits:
            said.append(f"{findings.letter(index)}: {mismatch.left_out(entry.misfits)}.")
    for (i, one), (j, other) in combinations(enumerate(entries), 2):
        if one.region and other.region and one.region != other.region:
            said.append(
                f"{findings.letter(i)} and {findings.letter(j)} have masks of their own, so that each is drawn without "
                "the other and their overlap does not matter."
            )
            continue
        if max(one.span[0], other.span[0]) >= min(one.span[1], other.span[1]):
            said.append(
                f"{findings.letter(i)} and {findings.letter(j)} are never on at the same time, so their overlap does "
                "not matter."
            )
    return said


def _unknown(layers: Sequence[str], norms: Collection[str]) -> list[str]:
    missing = [name for name in layers if name not in norms]
    if not missing:
        return []
    return [
        f"{len(missing)} weights of the base model are stored in a format that only their loader can read; they are "
        "missing from the comparison with the base model."
    ]
