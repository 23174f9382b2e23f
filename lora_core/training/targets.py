"""Tells which layers of a model get a correction: named presets, then include and exclude patterns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..attention_names import HOME, SINGLE, leaf
from .config import LoraConfig

_ATTENTION = re.compile(rf"(^|\.)({HOME}\.(\w+\.)*?({leaf()})|{SINGLE}\.linear[12])$")
_MLP = re.compile(r"(^|\.)((img_|txt_)?mlp|ff|ffn|ff_context|feed_forward|ff_[it])\.(\w+\.)*\w+$")
_IN_BLOCK = re.compile(r"\.\d+\.")


def layer_kind(module: nn.Module) -> str | None:
    """`linear` or `conv` for a layer that a low-rank pair can correct, else None (norms, embeddings, grouped conv)."""
    weight = getattr(module, "weight", None)
    if getattr(weight, "ndim", 0) == 2 and hasattr(module, "in_features"):
        return "linear"
    if (
        getattr(weight, "ndim", 0) >= 3
        and getattr(module, "groups", 0) == 1
        and not getattr(module, "transposed", True)
    ):
        return "conv"
    return None


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """The logical shape of a layer's weight, (out, in) or (out, in, *kernel), whatever form the weight is stored in."""
    layer: Any = module  # nn.Module does not declare what its kinds have
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return layer.out_features, layer.in_features
    if hasattr(module, "kernel_size") and not getattr(module, "transposed", True):
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    return tuple(layer.weight.shape)


def in_preset(preset: str, name: str, kind: str) -> bool:
    """Return whether the layer `name` of kind `linear` or `conv` belongs to the preset."""
    if preset == "linear+conv":
        return True
    if preset == "all-linear":
        return kind == "linear"
    attention = bool(_ATTENTION.search(name))
    if preset == "attention":
        return attention
    return attention or (kind == "linear" and bool(_MLP.search(name)) and bool(_IN_BLOCK.search(name)))


def select(model: nn.Module, config: LoraConfig, prefix: str = "", own: Collection[str] = ()) -> dict[str, nn.Module]:
    """Return layers of `model` by name (`prefix` + module path), in the model's order.

    A layer is taken when the preset or an include pattern takes it and no exclude pattern does; where `own` names
    layers of this model, they stand for the preset. Raises ValueError that lists what exists when nothing is left.
    """
    layers = {prefix + path: module for path, module in model.named_modules() if layer_kind(module)}
    own = layers.keys() & own
    chosen = {name: module for name, module in layers.items() if _wanted(name, module, config, own)}
    if not chosen:
        raise ValueError(
            f"targets '{config.preset}' with include {list(config.include)} and exclude {list(config.exclude)} "
            f"select none of the model's {len(layers)} layers; it has: {summary(layers)}"
        )
    return chosen


def _wanted(name: str, module: nn.Module, config: LoraConfig, own: Collection[str]) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}*") for pattern in patterns)

    usual = name in own if own else in_preset(config.preset, name, layer_kind(module) or "")
    return (usual or matches(config.include)) and not matches(config.exclude)


def summary(layers: Iterable[str], most: int = 12) -> str:
    """Layer names with block numbers folded (`blocks.*.attn.qkv x 12`), the commonest first."""
    counts = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in layers)
    rows = [f"{name} x {count}" for name, count in counts.most_common(most)]
    return ", ".join(rows) + (f" and {len(counts) - most} more" if len(counts) > most else "") if rows else "no layers"
