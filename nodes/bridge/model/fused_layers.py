"""Layers that ComfyUI computes inside a fused kernel of its own, without calling them: where a forward hook hangs, they
are called all the same.

From ComfyUI 0.33 on the down projections of INT8 models are computed so (MiniMax H3's since 0.30), later also Z-Image's
qkv and feed-forward, and fp16 layers under `--fast fp16_accumulation`. A hook beside such a layer would never run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import comfy.model_management
from torch import nn

Fused = Callable[..., Any]


def heed_hooks() -> None:
    """Make the fused functions of this ComfyUI heed forward hooks, from now on; those it lacks are left out."""
    for place, name, heeding in _FUSED:
        module = sys.modules.get(place)
        fused = getattr(module, name, None)
        if fused is not None and not hasattr(fused, _MARK):
            own = wraps(fused)(heeding(fused))
            setattr(own, _MARK, True)
            setattr(module, name, own)


def insist(module: nn.Module) -> Callable[[], None]:
    """Mark a layer with a hook as ComfyUI's bypass loader, from 0.37 on, marks the layers that it replaces: they are
    called, whatever kernel could take their weights. Return the call that takes our mark off, once no hook is left."""
    if not hasattr(module, _FORCED):
        setattr(module, _FORCED, _OURS)

    def let_go() -> None:
        if not module._forward_hooks and vars(module).get(_FORCED) == _OURS:
            delattr(module, _FORCED)

    return let_go


def forget_graphs(network: nn.Module) -> None:
    """Drop what newer versions have captured of a model's blocks as CUDA graphs: they replay what hung on the layers,
    and was on, when they were captured."""
    drop = getattr(sys.modules.get("comfy.model_prefetch"), "_drop_graph", None)
    if drop is not None:
        for module in network.modules():
            drop(module)


@contextmanager
def insisted(network: nn.Module) -> Iterator[None]:
    """Inside, every layer of a model that has a hook now is marked."""
    hooked = [each for each in network.modules() if each._forward_hooks and not hasattr(each, _FORCED)]
    for module in hooked:
        setattr(module, _FORCED, _OURS)
    try:
        yield
    finally:
        for module in hooked:
            vars(module).pop(_FORCED, None)


def _called(fused: Fused) -> Fused:
    """As ComfyUI does it in training, where every version calls the layer, whatever its further arguments."""

    def computed(linear: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not linear._forward_hooks:
            return fused(linear, *args, **kwargs)
        before = comfy.model_management.in_training
        comfy.model_management.in_training = True
        try:
            return fused(linear, *args, **kwargs)
        finally:
            comfy.model_management.in_training = before

    return computed


def _not_fit(fused: Fused) -> Fused:
    """For the question whether a layer can be part of a larger kernel."""

    def fits(linear: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return not linear._forward_hooks and fused(linear, *args, **kwargs)

    return fits


_MARK = "_heeds_hooks"
_FORCED, _OURS = "comfy_force_forward", "for a hook of LoRA Loom"  # true for who asks, and no one else's
_FUSED = (
    ("comfy.ops", "linear_input_act", _called),
    ("comfy.ldm.lumina.model", "_int8_convrot_linear", _not_fit),
)
