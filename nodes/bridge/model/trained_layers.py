"""Tells which layers of a MODEL, and of the text encoders that are trained along, a run trains."""

from __future__ import annotations

from torch import nn

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.training.config import LoraConfig
from ....lora_core.training.start import Start
from ....lora_core.training.targets import layer_kind, select
from .text_encoders import text_layers

PREFIX = "diffusion_model."


Layers = dict[str, nn.Module]


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
        where = encoders if text else network
        if name not in layers and where is not None:
            kept[name] = _module(where, name, TEXT_PREFIX if text else PREFIX)
    return layers, kept


def _module(network: nn.Module, name: str, prefix: str) -> nn.Module:
    module = network.get_submodule(name.removeprefix(prefix))
    if layer_kind(module) is None:
        raise ValueError(
            f"the file to continue from changes {name}, a {type(module).__name__}, which cannot be trained here; "
            "merge that layer into the model first, or choose another file"
        )
    return module
