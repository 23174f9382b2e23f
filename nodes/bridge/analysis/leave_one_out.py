"""The same picture with all LoRAs, without each of them, and with none: what each one really does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.analysis import leakage
from ....lora_core.analysis.findings import letter
from ....lora_core.analysis.leakage import PictureChange
from ....lora_core.drawing.measure import Measure, bars
from ....lora_core.drawing.sheet import SheetRow, sheet
from ....lora_core.stored import as_dict
from ..host.wires import Clip, Model, Vae
from ..model.sampling import Sampling
from ..stack.entries import Entry
from .drawn_sets import Prompts, drawn_by

_TILE = 256
ALL, NONE = "all", "none"


@dataclass(frozen=True)
class LeftOut:
    """`pictures` are those of the sheet, by row, each with its label."""

    sheet: Image.Image
    report: str
    figures: str
    measure: Measure
    pictures: list[SheetRow]


def leave_one_out(
    model: Model, clip: Clip | None, vae: Vae, entries: Sequence[Entry], asked: Prompts, sampling: Sampling
) -> LeftOut:
    """Draw every prompt from every seed with each set of LoRAs, same noise. Raises ComfyUI's interrupt between steps,
    and ValueError when there is nothing to draw or to leave out."""
    _check(entries)
    drawn = drawn_by(model, clip, vae, _sets(entries), asked, sampling)
    rounds = drawn.rounds
    found = {name: drawn.changes(ALL, name) for name in drawn.pictures if name != ALL}
    rows, changes = _rows(drawn.pictures, found, rounds, entries), {name: leakage.mean(f) for name, f in found.items()}
    told = "\n".join((_report(entries, changes, asked, clip), *drawn.missed))
    figures = _figures(entries, changes, rounds)
    return LeftOut(sheet(rows, tile=_TILE), told, figures, _measure(changes, entries, len(rounds)), rows)


def _check(entries: Sequence[Entry]) -> None:
    if len(entries) > 24:
        raise ValueError(
            f"{len(entries)} LoRAs need {len(entries) + 2} pictures for each prompt, but 24 is the most; use fewer "
            "LoRAs"
        )


def _sets(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """All LoRAs, all but one, and none, by what the picture is called. Of one LoRA there is only all and none."""
    every = list(entries)
    without = {f"without {letter(i)}": [*every[:i], *every[i + 1 :]] for i in range(len(every)) if len(every) > 1}
    return {ALL: every, **without, NONE: []}


def _rows(
    pictures: Mapping[str, Sequence[Image.Image]],
    changes: Mapping[str, Sequence[PictureChange]],
    rounds: Sequence[tuple[str, int]],
    entries: Sequence[Entry],
) -> list[SheetRow]:
    """The change stands before the name, which may be longer than the picture is wide."""
    words = _in_words(changes, entries)
    rows = []
    for number, (prompt, seed) in enumerate(rounds):
        labels = [ALL, *(f"{each[number].latent:.2f} {words[name]}" for name, each in changes.items())]
        rows.append(
            SheetRow(f"{prompt or 'positive'}, seed {seed}", [drawn[number] for drawn in pictures.values()], labels)
        )
    return rows


def _measure(changes: Mapping[str, PictureChange], entries: Sequence[Entry], rounds: int) -> Measure:
    words = _in_words(changes, entries)
    alone = {name: change.latent for name, change in changes.items() if name != NONE}
    verdict = _ranked(alone, words) or [f"Without any LoRA the picture changes by {changes[NONE].latent:.4f} (latent)."]
    few = " The change is of a single picture: more seeds and prompts make it more reliable." if rounds == 1 else ""
    named = {f"without {letter(i)}": entry.name for i, entry in enumerate(entries)} | {NONE: "all of them"}
    lines = [(named[name], (c.latent, c.pixels, c.structure)) for name, c in changes.items()]
    table = bars("Change of the picture without", "left out", ("latent", "pixels", "structure"), lines)
    return Measure(verdict[0], f"Same noise in all pictures.{few}", (table,))


def _report(entries: Sequence[Entry], changes: Mapping[str, PictureChange], asked: Prompts, clip: Clip | None) -> str:
    words = _in_words(changes, entries)
    lines = _ranked({name: change.latent for name, change in changes.items() if name != NONE}, words)
    lines += [f"{letter(i)} = {entry.name} at {entry.strength:g}" for i, entry in enumerate(entries)]
    lines.append("Change from the picture with all LoRAs, same noise (latent, pixels, structure):")
    lines += [f"  {words[name]}: {c.latent:.4f}, {c.pixels:.4f}, {c.structure:.4f}" for name, c in changes.items()]
    if asked.conditioning and _on_text(entries):
        lines.append("The effect of the LoRAs on the text encoder is not measured, because positive is connected.")
    return "\n".join(lines)


def _ranked(alone: Mapping[str, float], words: Mapping[str, str]) -> list[str]:
    """A line on whose absence is seen most and least; none where there is only one, or none, to leave out."""
    if len(alone) < 2:
        return []
    most, least = max(alone, key=alone.__getitem__), min(alone, key=alone.__getitem__)
    if f"{alone[most]:.4f}" == f"{alone[least]:.4f}":
        return ["All LoRAs matter equally: without any one of them the picture changes as much."]
    return [f"The picture changes most {words[most]} and least {words[least]}."]


def _in_words(names: Iterable[str], entries: Sequence[Entry]) -> dict[str, str]:
    """The set without a LoRA by that LoRA's name in place of its letter."""
    without = {f"without {letter(i)}": f"without {entry.name}" for i, entry in enumerate(entries)}
    return {name: without.get(name, name) for name in names}


def _on_text(entries: Sequence[Entry]) -> bool:
    names = ((entry, name) for entry in entries for name in (*entry.adapter.layers, *entry.adapter.others))
    return any(name.startswith(TEXT_PREFIX) and entry.strength_of(name) for entry, name in names)


def _figures(entries: Sequence[Entry], changes: Mapping[str, PictureChange], rounds: Sequence[tuple[str, int]]) -> str:
    return json.dumps(
        {
            "loras": {letter(i): entry.name for i, entry in enumerate(entries)},
            "pictures": len(rounds),
            "changes": as_dict(changes),
        },
        indent=1,
    )
