"""Finds out what a LoRA file means by its strength:
- `<layer>.alpha` present: delta_W = alpha / rank * up @ down (kohya; ComfyUI reads it beside any spelling).
- absent: delta_W = up @ down, so alpha = rank.
- absent, and PEFT's `adapter_config.json` lies beside the file: the same figures under bare names, which
  `PeftModel.from_pretrained` builds its LoraConfig from.
- 0: the layer is switched off.
- `<layer>.scalar` (LyCORIS, use_scalar) multiplies the change. LyCORIS itself mostly folds it into a factor.
- absent, and the header has `lora_adapter_metadata` (diffusers >= 0.34): diffusers builds its LoraConfig from that
  JSON, so `lora_alpha / r` (`lora_alpha / sqrt(r)` with `use_rslora`, `alpha_pattern` per layer) is the strength the
  file was trained at, and is what is read here. ComfyUI's loader ignores it and applies such a file at scale 1.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import layers
from .faults import UnsupportedWeightsError, quote, refuse
from .nested import value_of

logger = logging.getLogger("lora_loom")

CONFIG = "adapter_config.json"  # as PEFT's save_pretrained names it
_PEFT_PREFIX = "base_model.model."
_MOST = 2**20  # bytes of such a file


def alpha_of(
    source: str, name: str, layer: layers.LayerKeys, parts: Mapping[str, Tensor], tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> float | None:  # fmt: skip
    """None when the file says nothing of it, or it has no meaning for these weights."""
    key, means = layer.keys.get("alpha"), layer.kind.alpha_means(parts) if layer.kind else "scale"
    if means == "nothing":
        return None
    if means == "limit":
        return None if key is None else layers.check_limit(source, key, float(tensors[key].item()))
    if key is not None:
        return layers.check_alpha(source, key, float(tensors[key].item()))
    if layer.kind is None:
        return layers.check_alpha(source, name, _peft_alpha(source, name, parts["down"].shape[0], config))
    if config.get("peft_type") in ("LOHA", "LOKR"):
        module = name.removeprefix(_PEFT_PREFIX)
        alpha = _matching(source, config.get("alpha_pattern"), module, config.get("alpha"))
        return layers.check_alpha(source, name, alpha)
    return None


def scalar_of(source: str, layer: layers.LayerKeys, tensors: Mapping[str, Tensor]) -> float:
    key = layer.keys[layers.SCALAR]
    return layers.check_alpha(source, key, float(tensors[key].item()))


def peft_config(source: str, metadata: Mapping[str, str], beside: Path | None = None) -> Mapping[str, Any]:
    """`lora_adapter_metadata` of a header, else the file `beside`; empty when there is neither. Refuses what is not a
    JSON object."""
    if (text := metadata.get("lora_adapter_metadata")) is not None:
        where = "metadata 'lora_adapter_metadata'"
    elif beside is not None:
        where = f"a {CONFIG} beside it"
        with open(beside, "rb") as file:
            text = file.read(_MOST).decode("utf-8", "replace")
    else:
        return {}
    config = value_of(text)
    if not isinstance(config, dict):
        refuse(source, f"has {where} that is not a JSON object")
    logger.info("%s: strength taken from %s, as diffusers and PEFT take it", source, where)
    return config


def config_of(path: Path) -> Path | None:
    """PEFT's configuration in the folder of a LoRA file, when it is that file's: named as PEFT names it, or alone."""
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        return None
    others = (other for other in path.parent.iterdir() if other.suffix == path.suffix and other.name != path.name)
    return beside if path.stem.startswith("adapter_model") or not any(others) else None


def _peft_alpha(source: str, name: str, rank: int, config: Mapping[str, Any]) -> float:
    """Alpha of a layer that has no alpha tensor. Keys are `transformer.lora_alpha`, or bare for a single model."""
    name = name.removeprefix(_PEFT_PREFIX)
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
        refuse(source, f"has an alpha of {quote(str(value))} for {quote(module)} in its PEFT configuration")
    return float(str(value))  # which makes infinity of an integer beyond all floats
