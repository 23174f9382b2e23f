"""A run that was finished before: found and returned without encoding anything or loading a model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ...lora_core.adapter import Adapter
from ...lora_core.files import formats
from ...lora_core.training import finished
from ...lora_core.training.config import fingerprint
from ...lora_core.training.finished import Finished
from ...lora_core.training.run_folder import RunFolder
from ...lora_core.version import VERSION
from . import preparing
from .cache import works_around_weights
from .preparing import Order
from .previews import kept_sheet
from .reading import read_lora
from .runs import known
from .start import chosen_layers

log = logging.getLogger("lora_loom")


def _key(order: Order, identity: str) -> str:
    """Changes with everything that the result, the report and the charts depend on."""
    names = [Path(example.source).name for example in order.sources.dataset.examples]
    return fingerprint(VERSION, identity, order.recipe.validation, names)


def find(order: Order) -> tuple[Path, Finished, Image.Image, Image.Image | None] | None:
    """The folder of a run of these very settings that was finished, what it told, its charts and its last sheet.

    None when any of it is not there, and for a MODEL whose weights cannot be known before it is loaded.
    """
    run, sources, recipe = order.run, order.sources, order.recipe
    patchers = [sources.model, *([order.text.patcher] if order.text else [])]
    if run.start_over or not all(map(_unpatched, patchers)):
        return None
    encoders = order.text.patcher.model if order.text else None
    layers, _ = chosen_layers(sources.model.model.diffusion_model, encoders, recipe.lora, sources.start)
    base = preparing.digest(layers, sources.model)
    identity = preparing.identity(recipe, sources, base, order.pictures)
    settings = preparing.settings(recipe, sources, base, order.pictures)
    folder = known(run.name, identity, settings, preparing.below_before(sources))
    found = folder and finished.recall(folder.path, _key(order, folder.identity))
    if found is None:
        return None
    told, charts = found
    shown = preparing.planned(sources, recipe, run)
    due = shown is not None and shown.due(told.step, recipe.train.steps)
    sheet = kept_sheet(folder.path, told.step, shown) if due else None
    return None if due and sheet is None else (folder.path, told, charts, sheet)


def keep(order: Order, run: RunFolder, told: Finished, adapter: Adapter, charts: Image.Image) -> None:
    """Note in its folder what a run told, so that `find` finds it; not when the file there is not the LoRA."""
    try:
        kept = kept_adapter(run.path, told)
    except (OSError, ValueError) as reason:
        log.warning("%s: what the run told is not kept (%s)", run.path.name, reason)
        return
    on_disk, wanted = (formats.encode(each, "native", dtype=torch.float32) for each in (kept, adapter))
    if on_disk.keys() == wanted.keys() and all(torch.equal(on_disk[name], wanted[name]) for name in wanted):
        finished.remember(run.path, _key(order, run.identity), told, charts)


def kept_adapter(folder: Path, told: Finished) -> Adapter:
    """The LoRA that came out, without its header."""
    return replace(read_lora(folder / told.file).copied(torch.float32), metadata={})


def _unpatched(patcher) -> bool:
    """Whether what lies in the layers is what the file has, with nothing beside it, and not what patches of this MODEL
    or of a clone made of it."""
    if works_around_weights(patcher):
        return False
    return not patcher.patches and patcher.model.current_weight_patches_uuid in (None, patcher.patches_uuid)
