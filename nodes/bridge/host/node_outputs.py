"""Makes what nodes give ComfyUI: pictures, LORA_MODEL, and what stays on a node that has run, which ComfyUI keeps with
the output and sends again when it did not run."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ....lora_core.adapter import Adapter
from ....lora_core.drawing.measure import MOST_PICTURES, Measure
from ....lora_core.drawing.sheet import SheetRow
from ....lora_core.files import formats
from ....lora_core.ranks.group import here

log = logging.getLogger("lora_loom")


def as_image_batch(picture: Image.Image) -> Tensor:
    """IMAGE (1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def as_one_batch(picture: Image.Image | None) -> Tensor:
    """Return the same as an IMAGE, and 64 dark pixels square where there is no picture."""
    return as_image_batch(picture or Image.new("RGB", (64, 64)))


def as_picture(images: Tensor) -> Image.Image:
    """Return the first picture of an IMAGE (n, height, width, 3 or 4) in 0..1."""
    return Image.fromarray((images[0].cpu().float().clamp(0, 1) * 255).round().byte().numpy())


def as_lora_model(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return ComfyUI's LORA_MODEL: tensors under names that its own nodes load, alpha included."""
    return formats.encode(adapter, "native", dtype=torch.float32)


def report_ui(
    node: type[io.ComfyNode], report: str, images: Tensor | None = None, chosen: Mapping[str, str] | None = None,
    measure: Measure | None = None,
) -> dict:  # fmt: skip
    """`ui` of a node's output: the report, below it an IMAGE, what automatic inputs stand for, by their names, and
    figures to be shown as tables. Of several ranks the first one writes the IMAGE.

    The front end's web/js/told/told.js shows the texts, web/js/measures the figures.
    """
    pictures = {} if images is None or not here().first else _kept(node, images)
    shown = {"chosen": (dict(chosen),)} if chosen else {}
    return {**pictures, "text": (report,), **shown, **({"lora_loom": (measure.as_json(),)} if measure else {})}


def with_pictures(node: type[io.ComfyNode], measure: Measure, rows: Sequence[SheetRow]) -> Measure:
    """Return the measure with the pictures of a sheet, one by one, as many of the first rows as are sent."""
    shown, left = [], MOST_PICTURES
    for row in rows:
        left -= len(row.pictures)
        if left < 0:
            break
        files = [_kept(node, as_image_batch(picture)).get("images", []) for picture in row.pictures]
        named = [{**file, "label": label} for each, label in zip(files, row.labels, strict=True) for file in each]
        shown.append((row.title, tuple(named)))
    return replace(measure, rows=tuple(shown))


def _kept(node: type[io.ComfyNode], images: Tensor) -> dict:
    """The pictures in ComfyUI's temporary folder; none where the disk does not take them, which is to stop nothing.

    ComfyUI draws their names from Python's generator, which is left as it was.
    """
    state = random.getstate()
    try:
        return ui.PreviewImage(images, cls=node).as_dict()
    except OSError as error:
        log.warning("the picture of %s is not shown: %s", node.__name__, error)
        return {}
    finally:
        random.setstate(state)
