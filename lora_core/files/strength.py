"""What a LoRA file means by its strength:
- `<layer>.alpha` present: delta_W = alpha / rank * up @ down (kohya; ComfyUI reads it beside any spelling).
- absent: delta_W = up @ down, so alpha = rank.
- 0: the layer is switched off.
- `<layer>.scalar` (LyCORIS, use_scalar) multiplies the change. LyCORIS itself mostly folds it into a factor.
- absent, and the header has `lora_adapter_metadata` (diffusers >= 0.34): diffusers builds its LoraConfig from that
  JSON, so `lora_alpha / r` (`lora_alpha / sqrt(r)` with `use_rslora`, `alpha_pattern` per layer) is the strength the
  file was trained at, and is what is read here. ComfyUI's loader ignores it and applies such a file at scale 1.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import layers
from .faults import UnsupportedWeightsError, quote, refuse
from .nested import value_of

logger = logging.getLogger("lora_loom")


def alpha_of(
    source: str, name: str, layer: layers.Layer, parts: Mapping[str, Tensor], tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> float | None:  # fmt: skip
    """None when the file says nothing of it, or it has no meaning for these weights."""
    key, means = layer.keys.get("alpha"), layer.kind.alpha_means(parts) if layer.kind else "scale"
    if means == "nothing" or means == "limit" and key is None:
        return None
    if means == "limit":
        return layers.check_limit(source, key, float(tensors[key].item()))
    if key is not None:
        return layers.check_alpha(source, key, float(tensors[key].item()))
    if layer.kind is None:
        return layers.check_alpha(source, name, _peft_alpha(source, name, parts["down"].shape[0], config))
    return None


def scalar_of(source: str, layer: layers.Layer, tensors: Mapping[str, Tensor]) -> float:
    key = layer.keys[layers.SCALAR]
    return layers.check_alpha(source, key, float(tensors[key].item()))


def peft_config(source: str, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """`lora_adapter_metadata` of a header; empty when there is none. Refuses what is not a JSON object."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    config = value_of(text)
    if not isinstance(config, dict):
        refuse(source, "has metadata 'lora_adapter_metadata' that is not a JSON object")
    logger.info("%s: strength taken from lora_adapter_metadata, as diffusers does", source)
    return config


def _peft_alpha(source: str, name: str, rank: int, config: Mapping[str, Any]) -> float:
    """Alpha of a layer that has no alpha tensor. Keys are `transformer.lora_alpha`, or bare for a single model."""
    component, _, inner = name.partition(".")
    for prefix, module in ((component + ".", inner), ("", name)):
        if f"{prefix}lora_alpha" in config:
            pattern = config.get(f"{prefix}alpha_pattern") or {}
            alpha = _matching(source, pattern, module, config[f"{prefix}lora_alpha"])
            return alpha * rank**0.5 if config.get(f"{prefix}use_rslora") else alpha
    return float(rank)


def _matching(source: str, pattern: Any, module: str, default: Any) -> float:
    """PEFT's alpha_pattern lookup for literal names; the file's own regular expressions are never run."""
    value = default
    for key in pattern if isinstance(pattern, dict) else ():
        literal = key.lstrip("^").rstrip("$").replace("\\.", ".")
        if set("\\*+?()[]{}|^$").intersection(literal):
            raise UnsupportedWeightsError(
                f"{quote(source)} gives alpha by the pattern {quote(key)}; re-save it with an alpha for each layer."
            )
        if module == literal or not key.startswith("^") and module.endswith("." + literal):
            value = pattern[key]
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(source, f"has a lora_alpha of {quote(str(value))} for {quote(module)} in 'lora_adapter_metadata'")
    return float(value)
