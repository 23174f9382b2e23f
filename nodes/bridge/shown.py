"""What stays on a node that has run: ComfyUI keeps it with the output, and sends it again when it did not run."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io, ui
from torch import Tensor


def shown(
    node: type[io.ComfyNode], report: str, images: Tensor | None = None, chosen: Mapping[str, str] | None = None
) -> dict:
    """`ui` of a node's output: the report, below it an IMAGE, and what automatic inputs stand for, by their names.

    The front end's web/js/told.js shows the texts.
    """
    pictures = {} if images is None else ui.PreviewImage(images, cls=node).as_dict()
    return {**pictures, "text": (report,), **({"chosen": (dict(chosen),)} if chosen else {})}
