"""Plain corrections on a model in one line, as a stack puts them there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.chain import Step
from lora_loom.nodes.bridge.stack.apply_chain import apply_chain


def apply_layers(model: Any, clip: Any, layers: Mapping[str, LowRank]) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP (which may be None) with the corrections on them."""
    return apply_chain(model, clip, {name: [Step((layer,))] for name, layer in layers.items()})[:2]
