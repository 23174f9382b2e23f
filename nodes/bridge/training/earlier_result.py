"""A run that was finished before: found and returned without encoding anything or loading a model."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from PIL import Image

from ....lora_core.adapter import Adapter
from ....lora_core.files import formats
from ....lora_core.runs import result
from ....lora_core.runs.result import Finished
from ....lora_core.runs.run_folder import RunFolder
from ....lora_core.training.config import fingerprint
from ....lora_core.version import VERSION
from ..host.lora_files import read_lora
from ..host.wires import Model
from ..model.encoding_cache import works_around_weights
from . import prepare
from .order import Order
from .previewer import kept_sheet
from .run_folders import known

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
    folder = known(run.name, *prepare.identified(order, sources.model))
    found = result.recall(folder.path, _key(order, folder.identity)) if folder else None
    if folder is None or found is None:
        return None
    told, charts = found
    shown = prepare.planned(sources, recipe, run)
    due = shown is not None and shown.due(told.step, recipe.train.steps)
    sheet = kept_sheet(folder.path, told.step, shown) if shown and due else None
    return None if due and sheet is None else (folder.path, told, charts, sheet)


def keep(order: Order, run: RunFolder, told: Finished, adapter: Adapter, charts: Image.Image) -> None:
    """Note in its folder what a run told, so that `find` finds it; not when the file there is not the LoRA."""
    try:
        kept = kept_adapter(run.path, told)
    except (OSError, ValueError) as reason:
        log.warning("%s: the report of the run could not be saved (%s)", run.path.name, reason)
        return
    on_disk, wanted = (formats.encode(each, "native", dtype=torch.float32) for each in (kept, adapter))
    if on_disk.keys() == wanted.keys() and all(torch.equal(on_disk[name], wanted[name]) for name in wanted):
        result.remember(run.path, _key(order, run.identity), told, charts)


def kept_adapter(folder: Path, told: Finished) -> Adapter:
    """Return the LoRA that came out, with the header of its file."""
    return read_lora(folder / told.file).copied(torch.float32)


def _unpatched(patcher: Model) -> bool:
    """Whether what lies in the layers is what the file has, with nothing beside it, and not what patches of this MODEL
    or of a clone made of it."""
    if works_around_weights(patcher):
        return False
    return not patcher.patches and patcher.model.current_weight_patches_uuid in (None, patcher.patches_uuid)
