"""What stays on a node that has run: ComfyUI keeps it with the output, and sends it again when it did not run."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor


def shown(node: type[io.ComfyNode], report: str, images: Tensor | None = None) -> dict:
    """`ui` of a node's output: the report, below it an IMAGE. The front end's web/js/report.js shows the text."""
    pictures = {} if images is None else ui.PreviewImage(images, cls=node).as_dict()
    return {**pictures, "text": (report,)}
