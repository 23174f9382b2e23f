"""The same picture with all LoRAs, without each of them, and with none: what each one really does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.analysis import leakage
from ....lora_core.analysis.findings import letter
from ....lora_core.analysis.leakage import PictureChange
from ....lora_core.drawing.measure import Measure, bars
from ....lora_core.drawing.sheet import SheetRow, sheet
from ....lora_core.stored import as_dict
from ..host.progress import Progress
from ..host.wires import Clip, Model, Vae
from ..model.sampling import Sampling, check_size, decoded, latents
from ..stack.apply_stack import apply_entries
from ..stack.bypass_injection import uncalled
from ..stack.entries import Entry

_TILE = 256
ALL, NONE = "all", "none"


@dataclass(frozen=True)
class Prompts:
    """Says what is drawn, from how many seeds. CONDITIONING that is given is taken as it is, in place of prompts."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    seeds: int = 1
    conditioning: list | None = None
    negative_conditioning: list | None = None


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
    check_size(vae, sampling.width, sampling.height)
    _check(asked, clip, entries)
    sets = _sets(entries)
    seeds = [(sampling.seed + number) % 2**64 for number in range(asked.seeds)]
    prompts = asked.prompts or ("",)
    rounds = [(prompt, seed) for prompt in prompts for seed in seeds]
    progress, made, missed = Progress(2 * len(sets) * len(rounds)), {}, []
    for at, (name, kept) in enumerate(sets.items()):
        patcher, text, _ = apply_entries(model, clip, kept)
        conditions = _conditions(text, prompts, asked)
        made[name] = []
        for prompt, seed in rounds:
            progress.say(f"{name}: picture {len(made[name]) + 1} of {len(rounds)}")
            made[name].append(latents(patcher, *conditions[prompt], sampling, seed))
            progress.update(at * len(rounds) + len(made[name]))
        missed += [line for each in uncalled(patcher, text) for line in each.sentences() if name == ALL]
    pictures: dict[str, list[Image.Image]] = {}
    for name, drawn in made.items():
        pictures[name] = []
        for latent in drawn:
            pictures[name].append(decoded(vae, latent))
            progress.update(len(sets) * len(rounds) + sum(map(len, pictures.values())))
    found = {name: _changes(made, pictures, name) for name in sets if name != ALL}
    rows, changes = _rows(pictures, found, rounds, entries), {name: leakage.mean(each) for name, each in found.items()}
    told = "\n".join((_report(entries, changes, asked, clip), *missed))
    figures = _figures(entries, changes, rounds)
    return LeftOut(sheet(rows, tile=_TILE), told, figures, _measure(changes, entries, len(rounds)), rows)


def _check(asked: Prompts, clip: Clip | None, entries: Sequence[Entry]) -> None:
    if not asked.conditioning and not asked.prompts:
        raise ValueError("there is no prompt; write one, or connect positive")
    if not asked.conditioning and clip is None:
        raise ValueError("prompts need a text encoder; connect clip, or positive and negative conditioning")
    if asked.conditioning and asked.negative_conditioning is None and clip is None:
        raise ValueError("the negative prompt needs a text encoder; connect clip or negative_conditioning")
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


def _conditions(clip: Clip | None, prompts: Sequence[str], asked: Prompts) -> dict[str, tuple[list, list]]:
    """Positive and negative of each prompt; every text is encoded once, whatever the number of seeds."""
    negative = asked.negative_conditioning
    negative = _encoded(clip, asked.negative) if negative is None else negative
    return {prompt: (asked.conditioning or _encoded(clip, prompt), negative) for prompt in prompts}


def _encoded(clip: Clip | None, prompt: str) -> list:
    speaker = cast(Clip, clip)  # `_check` asks for one where there is a text to encode
    return speaker.encode_from_tokens_scheduled(speaker.tokenize(prompt))


def _changes(
    made: Mapping[str, Sequence[Tensor]], pictures: Mapping[str, Sequence[Image.Image]], name: str
) -> list[PictureChange]:
    """From all LoRAs to this set, round by round."""
    return [
        leakage.change(before, after, _pixels(one), _pixels(other))
        for before, after, one, other in zip(made[ALL], made[name], pictures[ALL], pictures[name], strict=True)
    ]


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


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
