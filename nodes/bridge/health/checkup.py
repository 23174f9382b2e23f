"""A LoRA's health: examined by its file, repaired, looked at in use, and drawn without each of its blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ....lora_core.adapter import Adapter
from ....lora_core.analysis.health import Health
from ....lora_core.analysis.health_effect import Effects
from ....lora_core.analysis.health_page import health_page
from ....lora_core.analysis.health_table import health_measure, state
from ....lora_core.analysis.health_words import findings, repair_line, verdict
from ....lora_core.analysis.part_strengths import of_layers, sections
from ....lora_core.analysis.repair import Moved, Repair, repaired, repairs_of
from ....lora_core.data.captions import literal, with_trigger
from ....lora_core.data.dataset import Dataset
from ....lora_core.drawing.measure import Measure
from ....lora_core.drawing.sheet import SheetRow, sheet, stacked
from ....lora_core.files.words import trigger_words
from ....lora_core.stored import as_dict
from ..analysis.drawn_sets import Prompts
from ..analysis.suggestion import Asked, scene_of
from ..host.node_outputs import as_lora_model
from ..host.progress import Progress
from ..host.wires import Clip, Model, Vae
from ..model.sampling import Sampling
from ..stack.loudness import too_loud
from .effect import Looking, effects_of
from .examined import Examined, examined
from .pictures import BlockPictures, block_pictures

FAULTS, AND_BLOCKS, NOTHING = "faults", "faults and blocks", "nothing"
_TILE = 192


@dataclass(frozen=True)
class Wanted:
    """Says what is repaired, whether parts are single blocks, and what is drawn; an empty trigger is the LoRA's own or
    the data set's, and empty prompts are the trigger alone."""

    repair: str = FAULTS
    each_block: bool = False
    trigger: str = ""
    prompts: tuple[str, ...] = ()
    negative: str = ""
    seeds: int = 1


@dataclass(frozen=True)
class Instruments:
    """Holds what a LoRA is looked at with. Without CLIP nothing is but its file, and without VAE nothing is drawn."""

    model: Model
    clip: Clip | None = None
    vae: Vae | None = None
    data: Dataset | None = None


@dataclass(frozen=True)
class Checkup:
    """`lora_model` is the adapter for ComfyUI's own loaders; what cannot be used blocks what comes after it, with a
    reason. `blocks` are proposed strengths as Load LoRA Stack takes them, `pictures` those of the page, by row."""

    adapter: Adapter | ExecutionBlocker
    lora_model: dict[str, Tensor] | ExecutionBlocker
    page: Image.Image
    report: str
    blocks: str
    figures: str
    measure: Measure
    pictures: list[SheetRow]


def check_up(
    given: Instruments, adapter: Adapter | None, lora_name: str, wanted: Wanted, sampling: Sampling
) -> Checkup:  # fmt: skip
    """Examine the adapter or the file, repair it, and look at it and draw with it as far as the instruments go. Raises
    ValueError when there is not exactly one of the two, when layers of text encoders would be lost, and when nothing is
    left of it."""
    progress = Progress(1)
    found = examined(given.model, given.clip, adapter, lora_name, progress)
    repairs = repairs_of(found.health) if wanted.repair != NOTHING else []
    healed = repaired(found.layers, repairs)
    named = sections(healed, wanted.each_block)
    wanted = replace(wanted, trigger=_trigger(wanted, found, given.data))
    effects, unseen = _effects(given, found, healed if repairs else None, named, wanted, sampling, progress)
    if effects is not None and effects.parts is not None and wanted.repair == AND_BLOCKS:
        repairs = repairs_of(found.health, of_layers(effects.parts.factors, named))
    after = repaired(found.layers, repairs)
    made = found.written(after, repairs)
    drawn, undrawn = _drawn(given, found, after if repairs else None, wanted, sampling)
    told = Told(found, repairs, Moved.between(found.layers, after, found.broken), effects, drawn)
    loud = too_loud([found.source.entry], given.model, given.clip) if found.health.sound else []
    return told.checkup(made, (*(f"{line}." for line in loud), *filter(None, (unseen, undrawn))))


def _trigger(wanted: Wanted, found: Examined, data: Dataset | None) -> str:
    own = next(iter(trigger_words(found.source.entry.adapter.metadata)), "")
    return literal(wanted.trigger or own or (data.trigger if data is not None else ""))


def _prompts(wanted: Wanted) -> tuple[str, ...]:
    if not wanted.prompts:
        return (wanted.trigger,) if wanted.trigger else ()
    return tuple(with_trigger(prompt, wanted.trigger) if wanted.trigger else prompt for prompt in wanted.prompts)


def _effects(
    given: Instruments, found: Examined, healed: Mapping[str, Any] | None, named: Mapping[str, Sequence[str]],
    wanted: Wanted, sampling: Sampling, progress: Progress,
) -> tuple[Effects | None, str]:  # fmt: skip
    """The effects of the LoRA, or why they were not looked at. `healed` are its layers after repairs, if any."""
    if given.clip is None:
        return None, "What it does to pictures was not looked at: connect clip, and vae and dataset for its concept."
    if given.data is None and not _prompts(wanted):
        return None, "What it does to pictures was not looked at: write its trigger word, which its file does not name."
    if found.broken and healed is None:
        return None, "What it does to pictures was not looked at: it makes them black."
    asked = Asked(_prompts(wanted), wanted.trigger, (), wanted.negative, sampling)
    try:
        scene = scene_of((given.model, given.clip), given.vae, found.holding(found.layers), given.data, asked, progress)
    except ValueError as error:
        return None, f"What it does to pictures was not looked at: {error}."
    whole = found.holding(found.layers).adapter
    before = whole if healed is not None and not found.broken else None
    after = whole if healed is None else found.holding(healed).adapter
    looking = Looking(scene, progress, len(named))
    return effects_of(looking, before, after, named, wanted.repair == AND_BLOCKS), ""


def _drawn(
    given: Instruments, found: Examined, after: Mapping[str, Any] | None, wanted: Wanted, sampling: Sampling
) -> tuple[BlockPictures | None, str]:  # fmt: skip
    """The LoRA without each of its blocks, beside the repaired one; where it is broken, of the repaired one alone."""
    if given.clip is None or given.vae is None:
        return None, "No pictures were drawn: connect clip and vae for one without each block."
    if not (prompts := _prompts(wanted)):
        return None, "No pictures were drawn: write a prompt or the trigger word."
    if found.broken and after is None:
        return None, "No pictures were drawn: they would be black."
    layers = after if found.broken and after is not None else found.layers
    other = found.holding(after) if after is not None and not found.broken else None
    asked = Prompts(prompts, wanted.negative, wanted.seeds)
    named = sections(layers, wanted.each_block)
    pictures = block_pictures(given.model, given.clip, given.vae, found.holding(layers), other, named, asked, sampling)
    return pictures, ""


@dataclass(frozen=True)
class Told:
    """Words and draws what was found."""

    found: Examined
    repairs: Sequence[Repair]
    moved: Moved
    effects: Effects | None
    drawn: BlockPictures | None

    def checkup(self, made: Adapter, notes: Sequence[str]) -> Checkup:
        health, drawn, seen = self.found.health, self.drawn, self._seen()
        measure, page = health_measure(health, self.repairs, seen), health_page(self.found.name, health)
        done = repair_line(self.repairs, self.moved)
        tables = (*measure.tables, *(self.effects.tables() if self.effects is not None else ()))
        if drawn is not None:
            tables, page = (*tables, drawn.table()), stacked(page, sheet(drawn.rows, tile=_TILE))
        measure = replace(measure, advice=" ".join([done, *notes]), tables=tables)
        lines = [f"{self.found.name}: {verdict(health)}", *findings(health), done, *seen, *notes, *self.found.notes]
        lines += [f"  {repair.layer}: {repair.in_words()}" for repair in self.repairs]
        lines += list(drawn.missed) if drawn is not None else []
        parts = self.effects.parts if self.effects is not None else None
        blocks = parts.text() if parts is not None else ""
        rows = drawn.rows if drawn is not None else []
        adapter, lora_model = self._usable(made)
        return Checkup(
            adapter, lora_model, page, report="\n".join(lines), blocks=blocks, figures=self._figures(), measure=measure,
            pictures=rows,
        )  # fmt: skip

    def _usable(self, made: Adapter) -> tuple[Adapter | ExecutionBlocker, dict[str, Tensor] | ExecutionBlocker]:
        left = [name for name in self.found.broken if name in made.layers]
        if not left:
            return made, as_lora_model(made)
        blocked = ExecutionBlocker(f"the LoRA holds NaN or infinite values in {left[0]}; set repair to faults")
        return blocked, blocked

    def _seen(self) -> list[str]:
        seen = self.effects.sentences() if self.effects is not None else []
        return [*seen, *filter(None, [self.drawn.sentence() if self.drawn is not None else ""])]

    def _figures(self) -> str:
        health = self.found.health
        return json.dumps(
            {
                "sound": health.sound, "norm": health.norm, "share": health.share(), "rank_99": health.rank_for(),
                "layers": _layers(health),
                "repairs": as_dict(list(self.repairs)), "moved": self.moved.distance, "left": self.moved.left,
                "effect": self.effects.figures() if self.effects is not None else None,
                "pictures": as_dict(dict(self.drawn.changes)) if self.drawn is not None else None,
            },
            indent=1,
        )  # fmt: skip


def _layers(health: Health) -> dict[str, dict[str, Any]]:
    return {
        layer.name: {
            "norm": layer.norm, "share": layer.share, "times_usual": health.times(layer),
            "strongest": layer.top, "strongest_share": layer.top_share, "rank": layer.rank,
            "effective_rank": layer.effective_rank, "found": state(health, layer),
        }
        for layer in health.layers
    }  # fmt: skip
