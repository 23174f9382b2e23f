"""Tensors that a LoRA file holds beside its layers, which are left out: what they are, as far as their names tell."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from .faults import quote

_NAMED = 2  # of each kind
_PIECE = re.compile(r"\.(?=(?:lora|hada|lokr|oft)_)|_(?=lora\.)")
FACTOR_BIAS = "bias of a factor"
_KINDS = {
    r"bundle_emb\.|emb_params|string_to_(param|token)": "embedding for prompts",
    r"lora_embedding_[AB]": "LoRA of an embedding table",
    r"\.oft_\w+(\.|$)": "PEFT's OFT",
    r"\.diff_m$": "change of a modulation",
    r"\.bias_(indices|values|size)$": "sparse bias of LyCORIS",
    r"position_ids$": "position numbers",
    r"(^|[._])(step|steps|epoch|epochs|iteration|num_updates|num_batches_tracked)$": "counter",
    r"\.(alpha|scalar)$": "strength without its layer",
    r"\.lora_(A|B|up|down)(\.default)?\.bias$": FACTOR_BIAS,
    r"(^|\.)(weight|bias)$": "whole weight",
}
UNKNOWN = "unknown"


def kind(name: str) -> str:
    """Return what a tensor belongs to that is no part of a layer."""
    return next((label for pattern, label in _KINDS.items() if re.search(pattern, name)), UNKNOWN)


def left_out_note(names: Iterable[str]) -> str:
    """`3 tensors beside the layers left out: embedding for prompts ('emb.a', 'emb.b'), counter ('step')`."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind(name), []).append(name)
    total = sum(map(len, kinds.values()))
    each = ", ".join(f"{label} ({_first(held)})" for label, held in kinds.items())
    return f"{total} {'tensors' if total > 1 else 'tensor'} besides the layers not used: {each}"


def alone(source: str, names: Iterable[str]) -> str:
    """Return why a file that holds nothing else is refused."""
    return (
        f"{quote(source)} contains no LoRA that can be read; {left_out_note(names)}; choose a file that contains a "
        "LoRA, or have its trainer save it as plain LoRA."
    )


def pieces(source: str, names: Iterable[str], layers: Container[str]) -> str:
    """Return why a file is refused that has tensors which are named as pieces of one of the layers, such as the scale
    of a factor that is quantised, or a matrix between two factors: without them the layer means something else."""
    for name in names:
        layer = _PIECE.split(name)[0]
        if layer in layers and kind(name) != FACTOR_BIAS:
            return (
                f"{quote(source)} has an unknown part {quote(name)} of the layer {quote(layer)}, without which the "
                "layer means something else; have its trainer save it as plain LoRA."
            )
    return ""


def _first(names: list[str]) -> str:
    return ", ".join(map(quote, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
