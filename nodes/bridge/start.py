"""A run that goes on from a LoRA file: read, named after the connected models' weights, and laid beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...lora_core.adapter import TEXT_PREFIX, Adapter
from ...lora_core.files import formats
from ...lora_core.files.hashes import data_hash, file_hash
from ...lora_core.files.lineage import Parent
from ...lora_core.low_rank import LowRank
from ...lora_core.merging.chain import chain
from ...lora_core.merging.exact_sum import Weighted
from ...lora_core.training.config import LoraConfig
from ...lora_core.training.start import Start
from ...lora_core.training.targets import layer_kind, select
from .folders import NONE, lora_path
from .keys import NameTable
from .patching import apply_chain
from .text import text_layers

PREFIX = "diffusion_model."
Layers = dict[str, nn.Module]


def read_start(name: str, model, clip, own_targets: bool, rank: int, alpha: float) -> Start | None:
    """The LoRA file of that name, any format. Raises ValueError for one that is not for this MODEL and CLIP."""
    if not name or name == NONE:
        return None
    path = lora_path(name)
    resolved = NameTable(model, clip).resolve(formats.read(path), path.name)
    if other := [kind for kind in resolved.adapter.kinds() if kind != "LoRA"]:
        raise ValueError(f"{path.name} holds {' and '.join(other)} weights; training goes on from plain LoRA only")
    layers = {name: layer.to(torch.float32, copy=True) for name, layer in resolved.adapter.layers.items()}
    parent = Parent.of(path.stem, resolved.adapter.metadata, 1.0, 1.0, data_hash(path))
    return Start(parent, file_hash(path), layers, own_targets, rank, alpha, resolved.unmatched)


def chosen_layers(
    network: nn.Module, encoders: nn.Module | None, lora: LoraConfig, start: Start | None
) -> tuple[Layers, Layers]:
    """The layers to train, of the diffusion network and of text encoders that are trained along, and those of the start
    that are attached as they are.

    Raises ValueError for a layer of the start that cannot be attached.
    """
    own = start.own_names() if start else ()
    layers = select(network, lora, PREFIX, own)
    if encoders is not None:
        layers |= text_layers(encoders, lora, own)
    kept = {}
    for name in start.layers if start else ():
        text = name.startswith(TEXT_PREFIX)
        if name not in layers and not (text and encoders is None):
            kept[name] = _module(encoders, name, TEXT_PREFIX) if text else _module(network, name, PREFIX)
    return layers, kept


def spoken_with(model, clip, start: Start | None) -> tuple[Any, dict[str, LowRank]]:
    """For a run that does not train text encoders: the CLIP with the start's corrections of them, and these."""
    text = {name: layer for name, layer in start.layers.items() if name.startswith(TEXT_PREFIX)} if start else {}
    if not text:
        return clip, text
    return apply_chain(model, clip, chain([Weighted(start.parent.name, Adapter(text), 1.0, 1.0)]))[1], text


def _module(network: nn.Module, name: str, prefix: str) -> nn.Module:
    module = network.get_submodule(name.removeprefix(prefix))
    if layer_kind(module) is None:
        raise ValueError(
            f"the file to continue from corrects {name}, a {type(module).__name__}, which cannot be trained here; "
            "merge that layer into the model first, or choose another file"
        )
    return module
