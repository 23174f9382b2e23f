"""Makes what stays on a node that has run: ComfyUI keeps it with the output, and sends it again when it did not run."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

from comfy_api.latest import io, ui
from torch import Tensor

log = logging.getLogger("lora_loom")


def shown(
    node: type[io.ComfyNode], report: str, images: Tensor | None = None, chosen: Mapping[str, str] | None = None
) -> dict:
    """`ui` of a node's output: the report, below it an IMAGE, and what automatic inputs stand for, by their names.

    The front end's web/js/told.js shows the texts.
    """
    pictures = {} if images is None else _kept(node, images)
    return {**pictures, "text": (report,), **({"chosen": (dict(chosen),)} if chosen else {})}


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
