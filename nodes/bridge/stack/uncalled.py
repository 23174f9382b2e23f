"""Layers that a forward of a model does not call: what LoRAs hold for them, beside the layer, has no effect then.

ComfyUI computes some layers from their weights, inside larger kernels. `fused_layers.py` keeps it from that as far as
it knows how; this looks whether it did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from comfy_execution.utils import get_executing_context
from torch import nn

from ..host.progress import say_on
from .bypasses import Hooked

log = logging.getLogger("lora_loom")
_WHOLES = ("diffusion_model", "transformer")  # what ComfyUI calls of a MODEL, and of each encoder of a CLIP


class Uncalled:
    """Finds what the forwards of one stack's models left out. It is said once in each sampling, in the log and, below
    what it `reported`, on the node that made the stack."""

    def __init__(self, layers: Mapping[str, Hooked]):
        """`layers` by the names of their parameters."""
        self.layers, self.reported = dict(layers), ""
        context = get_executing_context()
        self.node = context.node_id if context else None
        self.found: dict[str, str] = {}  # a sentence for each network

    def watch(self, base_model: nn.Module) -> list[Callable[[], None]]:
        """Look after every forward of the model's networks. Return the calls that end it."""
        own: dict[str, list[str]] = {}
        for key in self.layers:
            if name := _whole(key):
                own.setdefault(name, []).append(key)
        looks = {name: partial(self._look, name, keys) for name, keys in own.items()}
        return [base_model.get_submodule(name).register_forward_hook(look).remove for name, look in looks.items()]

    def begin(self, *_: Any) -> None:
        """Say again, in the sampling that begins, what is still so."""
        self.found.clear()
        for layer in self.layers.values():
            layer.ran = False

    def sentences(self) -> list[str]:
        return list(self.found.values())

    def _look(self, name: str, keys: list[str], *_: Any) -> None:
        missing = [key for key in keys if not self.layers[key].ran]
        if missing and name not in self.found:
            self.found[name] = _sentence(name, missing, len(keys))
            log.warning(self.found[name])
            say_on(self.node, "\n".join(filter(None, (self.reported, *self.sentences()))))


def _whole(key: str) -> str:
    """The name of the network that a layer is in; empty for one outside of any."""
    parts = key.split(".")
    return next((".".join(parts[: at + 1]) for at, part in enumerate(parts) if part in _WHOLES), "")


def _sentence(name: str, missing: list[str], count: int) -> str:
    first = missing[0].removeprefix(f"{name}.").removesuffix(".weight")
    network = "model" if name == "diffusion_model" else "text encoder"
    return (
        f"warning: LoRAs have no effect in {len(missing)} of the {count} layers that they run beside, first {first}: "
        f"the {network} did not call them. Set apply to weights on Load LoRA Stack to reach them. This is normal if "
        f"the {network} needs these layers only for an input that is not connected"
    )
