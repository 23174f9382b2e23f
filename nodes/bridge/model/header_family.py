"""Tells a model file's family by its header alone, with ComfyUI's own detection on tensors without memory."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import comfy.model_detection
import comfy.supported_models
import torch

from ....lora_core.families.blocks import block_names
from ....lora_core.families.table import Family, for_config_class
from ....lora_core.files import guard

log = logging.getLogger("lora_loom")
_MOST = 64  # files that are remembered

_known: dict[tuple[str, int, int], ModelFile] = {}


@dataclass(frozen=True)
class ModelFile:
    """`family` is None where ComfyUI's detection knows none by the header; `weights` are the bytes of the diffusion
    network as they are stored, 0 where that is not told; `blocks` are the names of its blocks, as rows of a stack name
    them, where the family is known."""

    family: Family | None = None
    weights: int = 0
    blocks: tuple[str, ...] = ()


def look(path: str) -> ModelFile:
    """Return what the header tells; nothing for a file that is no sound safetensors file."""
    try:
        found = os.stat(path)
    except OSError:
        return ModelFile()
    stamp = path, found.st_size, found.st_mtime_ns
    known = _known.get(stamp)
    if known is None:
        known = _looked(Path(path))
        if len(_known) >= _MOST:
            _known.clear()
        _known[stamp] = known
    return known


def _looked(path: Path) -> ModelFile:
    try:
        contents = guard.contents(path)
    except (guard.UnsafeFileError, guard.UnreadableFileError) as error:
        log.debug("%s", error)
        return ModelFile()
    state = {name: torch.empty(info.shape, device="meta") for name, info in contents.tensors.items()}
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    own = {name: info for name, info in contents.tensors.items() if name.startswith(prefix)}
    if not own:
        prefix, own = "", contents.tensors
    weights = sum(info.end - info.start for info in own.values())
    family = _family(state, prefix, contents.metadata)
    layers = [name[len(prefix) :] for name in own if name.endswith(".weight")]
    return ModelFile(family, weights, tuple(block_names(layers)) if family else ())


def _family(state: dict[str, torch.Tensor], prefix: str, metadata: dict[str, str]) -> Family | None:
    """Detection trusts the shapes that it looks at, which a file need not have, and may want values, which a tensor
    without memory has not."""
    try:
        config = comfy.model_detection.detect_unet_config(state, prefix, metadata=metadata)
        models = comfy.supported_models.models if config else []
        found = next((each for each in models if each.matches(config, state)), None)
    except (AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        log.debug("no family by the header: %s", error)
        return None
    if found is None:
        return None

    def features(layer: str) -> int:
        weight = state.get(f"{prefix}{layer}.weight")
        return weight.shape[0] if weight is not None and weight.ndim else 0

    return for_config_class(found.__name__).sized(features)
