"""Names of files that name dates and fields, as `%date:yyyy-MM-dd%` and `%KSampler.seed%`: filled in as the browser
does when it sends a workflow, with what `--set` has changed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .prompt import Converted
from .texts import replaced

_SAVING = {  # classes whose names are filled in
    "SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio",
    "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced", "SaveGaussianSplat",
    "SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent",
}  # fmt: skip
_FIELD = "filename_prefix"


def fill(done: Converted, now: datetime) -> None:
    """Changes the prompt. A file in the API format has its names already."""
    for node in done.sources:
        given = done.prompt[node]["inputs"].get(_FIELD)
        if done.prompt[node]["class_type"] in _SAVING and isinstance(given, str):
            done.prompt[node]["inputs"][_FIELD] = replaced(given, now, lambda name, key: _value(done, name, key))


def _value(done: Converted, name: str, key: str) -> Any:
    """Return what is in a field. Raises KeyError where there is none."""
    if done.layout is None:
        raise KeyError(name)
    laid = done.layout.named(name)
    node = next((node for node, source in done.sources.items() if source is laid), "")
    return done.prompt[node]["inputs"][key] if (node, key) in done.changed else laid.fields[key].value
