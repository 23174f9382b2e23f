"""Draw with a LoRA and without it, and measure what it changes and what it copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.analysis import leakage, memorisation
from ....lora_core.analysis.suggestion import Suggestion
from ....lora_core.data.captions import literal
from ....lora_core.data.dataset import Dataset
from ....lora_core.data.prompts import with_trigger, without_trigger
from ....lora_core.drawing.measure import Measure, Table
from ....lora_core.drawing.sheet import SheetRow, beside, sheet
from ....lora_core.files.metadata import HINT
from ....lora_core.training.charts import draw_strengths
from ..host.node_outputs import as_picture
from ..host.progress import Progress
from ..host.wires import Clip, Model, Vae
from ..model.sampling import Sampling, check_size, decoded, latents
from ..stack.apply_stack import apply_entries, describe
from ..stack.bypass_injection import uncalled
from ..stack.entries import Entry
from ..stack.loudness import too_loud
from .bleeding import bleeding
from .suggestion import Asked, suggestion

NEUTRAL = ("a mountain landscape with a lake", "a bowl of fruit on a table", "a street in a city at night")
_TILE = 256


@dataclass(frozen=True)
class Questions:
    """Says what is drawn. An empty trigger is the LoRA's own or the data set's, and empty prompts are made of it."""

    trigger: str = ""
    prompts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    neutral: tuple[str, ...] = ()
    negative: str = ""
    seeds: int = 2


@dataclass(frozen=True)
class Drawn:
    """One prompt from one seed: the base model's picture and the LoRA's, and how far apart they are."""

    group: str
    prompt: str
    seed: int
    base: Image.Image
    lora: Image.Image
    change: leakage.PictureChange


@dataclass(frozen=True)
class Report:
    """`pictures` are those of the sheet, by row, each with its label."""

    text: str
    sheet: Image.Image
    figures: str
    measure: Measure
    pictures: list[SheetRow]


def report(
    model: Model, clip: Clip, vae: Vae, entries: Sequence[Entry], questions: Questions, sampling: Sampling,
    data: Dataset | None, suggests: bool = True,
) -> Report:  # fmt: skip
    """Draw every prompt from every seed with the base model and with the LoRAs. `suggests` is whether the strength to
    use them at is measured as well.

    Raises ValueError when no trigger word is known or no LoRA is given.
    """
    check_size(vae, sampling.width, sampling.height)
    trigger = _trigger(questions, entries, data)
    asked = _prompts(questions, trigger)
    changed = apply_entries(model, clip, entries)[:2]
    drawn = _drawn((model, clip), changed, vae, entries, asked, questions, sampling)
    groups = {group: [each.change for each in drawn if each.group == group] for group, _ in asked}
    leaked = leakage.measured(groups)
    missed = [line for each in uncalled(*changed) for line in each.sentences()]
    loud, shown = [f"{line}." for line in too_loud(entries, model, clip)], leaked.measure()
    hints = [f"{entry.name}: {entry.adapter.metadata[HINT]}" for entry in entries if HINT in entry.adapter.metadata]
    lines, rows = [describe(entries, True), *hints, *loud, *missed, leaked.report()], _rows(drawn)
    figures: dict[str, object] = {"leakage": leaked.figures()}
    shown = replace(shown, advice=" ".join(filter(None, (*loud, shown.advice))))
    if data is not None:
        copied, more, numbers, table = _memorised(drawn, data)
        lines, rows, figures = [*lines, copied], [*rows, *more], {**figures, "memorisation": numbers}
        said = " ".join(filter(None, (shown.advice, copied.partition("\n")[0])))
        shown = replace(shown, advice=said, tables=(*shown.tables, table))
    page = sheet(rows, tile=_TILE)
    apart = bleeding((model, clip), changed, vae, data, questions.negative) if suggests and data is not None else None
    if apart is not None:
        lines, figures = [*lines, apart.report()], {**figures, "bleeding": apart.figures()}
        shown = replace(
            shown, tables=(*shown.tables, apart.table()), advice=f"{shown.advice} {apart.sentence()}.".strip()
        )
    if suggests:
        told = tuple(prompt for group, prompt in asked if group == leakage.CONCEPT)
        about = Asked(told, trigger, questions.words, questions.negative, sampling)
        found = suggestion((model, clip), vae, entries, data, about)
        lines, figures, shown, page = _suggested(found, lines, figures, shown, page)
    return Report("\n\n".join(lines), page, json.dumps(figures, indent=1), shown, rows)


def _suggested(
    found: Suggestion | str, lines: list[str], figures: dict[str, object], shown: Measure, page: Image.Image
) -> tuple[list[str], dict[str, object], Measure, Image.Image]:
    """The parts of a report with what is suggested, which follows the line about the LoRA itself."""
    if isinstance(found, str):
        return [*lines, found], figures, shown, page
    said = " ".join(filter(None, (found.advice(), shown.advice)))
    shown = replace(shown, advice=said, tables=(*shown.tables, *found.tables()), curve=found.chart())
    if found.curve.points:
        chart = draw_strengths(found.curve, "concept" if found.seen else "change with the trigger", found.seen)
        page = beside(page, chart)
    return [lines[0], found.report(), *lines[1:]], {**figures, "strength": found.figures()}, shown, page


def _trigger(questions: Questions, entries: Sequence[Entry], data: Dataset | None) -> str:
    own = [entry.adapter.metadata.get("modelspec.trigger_phrase", "") for entry in entries]
    found = [questions.trigger, *own, data.trigger if data is not None else ""]
    trigger = next((text for text in found if text.strip()), "")
    if not trigger:
        raise ValueError(
            "the trigger word is unknown, because the file of the LoRA does not contain it; write it in trigger"
        )
    return literal(trigger)  # a name with parentheses is no weight


def _prompts(questions: Questions, trigger: str) -> list[tuple[str, str]]:
    """(group, prompt), each once."""
    prompts = questions.prompts or (trigger, f"a picture of {trigger}")
    asked = [(leakage.CONCEPT, with_trigger(prompt, trigger)) for prompt in prompts]
    words = questions.words or ("",)
    asked += [(leakage.CLASS, without_trigger(prompt, trigger, word)) for prompt in prompts for word in words]
    asked += [(leakage.NEUTRAL, prompt) for prompt in questions.neutral or NEUTRAL]
    return list(dict.fromkeys(asked))


def _drawn(
    base: tuple[Model, Clip], changed: tuple[Model, Clip], vae: Vae, entries: Sequence[Entry],
    asked: Sequence[tuple[str, str]], questions: Questions, sampling: Sampling,
) -> list[Drawn]:  # fmt: skip
    """First everything with the base model, then with the LoRAs, then the pictures: each model is loaded once. `base`
    and `changed` are a MODEL and a CLIP."""
    progress = Progress(3 * len(asked) * questions.seeds)
    on_text = any(
        entry.text_strength and name.startswith(TEXT_PREFIX)
        for entry in entries
        for name in (*entry.adapter.layers, *entry.adapter.others)
    )
    texts = [base[1], changed[1] if on_text else base[1]]
    seeds = [(sampling.seed + number) % 2**64 for number in range(questions.seeds)]
    made: list[list[Tensor]] = []
    for patcher, text in zip((base[0], changed[0]), texts, strict=True):
        conditions = {prompt: _encoded(text, prompt) for prompt in {questions.negative, *(p for _, p in asked)}}
        negative, found = conditions[questions.negative], []
        for _, prompt in asked:
            for seed in seeds:
                found.append(latents(patcher, conditions[prompt], negative, sampling, seed))
                progress.update(len(made) * len(asked) * len(seeds) + len(found))
        made.append(found)
    results = []
    for (group, prompt, seed), plain, lora in zip(((g, p, s) for g, p in asked for s in seeds), *made, strict=True):
        pictures = decoded(vae, plain), decoded(vae, lora)
        change = leakage.change(plain, lora, *map(_pixels, pictures))
        results.append(Drawn(group, prompt, seed, *pictures, change))
        progress.update(2 * len(asked) * len(seeds) + len(results))
    return results


def _encoded(clip: Clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def _rows(drawn: Sequence[Drawn]) -> list[SheetRow]:
    rows: dict[tuple[str, str], SheetRow] = {}
    for each in drawn:
        row = rows.setdefault((each.group, each.prompt), SheetRow(f"{each.group}: {each.prompt}", (), ()))
        labels = (f"base, seed {each.seed}", f"LoRA, {each.change.latent:.3f}")
        rows[each.group, each.prompt] = replace(
            row, pictures=(*row.pictures, each.base, each.lora), labels=(*row.labels, *labels)
        )
    return list(rows.values())


def _memorised(drawn: Sequence[Drawn], data: Dataset) -> tuple[str, list[SheetRow], dict[str, object], Table]:
    """Text, rows, figures and table of the samples with the trigger beside their nearest training pictures."""
    samples = [each for each in drawn if each.group == leakage.CONCEPT]
    training = list({(each.group, each.source): each for each in data.examples}.values())
    found = memorisation.compared(
        [_pixels(each.lora) for each in samples],
        [each.pixels for each in training],
        [_pixels(each.base) for each in samples],
    )
    names = [each.source.replace("\\", "/").rpartition("/")[2] for each in training]
    near = found.near()
    rows = [
        SheetRow(
            f"sample {number + 1}: {each.prompt}",
            (each.lora, as_picture(training[nearest.index].pixels[None])),
            (f"seed {each.seed}", f"{nearest.distance:.3f} {'near ' if number in near else ''}{names[nearest.index]}"),
        )
        for number, (each, nearest) in enumerate(zip(samples, found.samples, strict=True))
    ]
    return found.report(names), rows, {"pictures": names, **found.figures()}, found.table(names)
