"""Tells how LoRA files spell a layer's tensors: the suffix tells the part, what is left is the layer's name.

The table is the one of ComfyUI (comfy/weight_adapter/*.py and comfy/lora.py, load_lora), and PEFT's for DoRA.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..kinds import KINDS


class Spelling(NamedTuple):
    up: str
    down: str
    mid: str = ""


KOHYA = Spelling(".lora_up.weight", ".lora_down.weight", ".lora_mid.weight")
PEFT = Spelling(".lora_B.weight", ".lora_A.weight")
PROCESSOR = Spelling("_lora.up.weight", "_lora.down.weight")  # diffusers attention processors
BEFORE_PEFT = Spelling(".lora.up.weight", ".lora.down.weight")  # diffusers, the other layers
SPELLINGS = (
    KOHYA,
    PEFT,
    PROCESSOR,
    BEFORE_PEFT,
    Spelling(".lora_B", ".lora_A"),  # Mochi
    Spelling(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),  # diffusers text encoders
    Spelling(".lora_B.default.weight", ".lora_A.default.weight"),  # PEFT state dict saved with its adapter name
)
ALPHA, DORA_SCALE, MAGNITUDE = ".alpha", ".dora_scale", ".lora_magnitude_vector"
SCALAR, LORA_BIAS = "scalar", "lora_bias"  # parts of LyCORIS' use_scalar and of PEFT's lora_bias

_SUFFIXES = tuple((suffix, part) for spelling in SPELLINGS for part, suffix in spelling._asdict().items() if suffix)
_SUFFIXES += ((ALPHA, "alpha"), (f".{SCALAR}", SCALAR))
_SUFFIXES += tuple((suffix, LORA_BIAS) for suffix in (".lora_B.bias", ".lora_B.default.bias", ".lora_up.bias"))
_SUFFIXES += tuple(
    (suffix, "magnitude") for suffix in (MAGNITUDE, f"{MAGNITUDE}.weight", f"{MAGNITUDE}.default.weight")
)
_BESIDE = ("diff_b", "b_norm")  # change the bias beside the weight that the rest of the name means
_SUFFIXES += tuple(
    (f".{part}", part) for part in ("dora_scale", "reshape_weight", *(part for kind in KINDS for part in kind.PARTS))
)
_BY_END: dict[str, list[tuple[str, str]]] = {}  # by what follows the last dot
for _suffix, _part in _SUFFIXES:
    _BY_END.setdefault(_suffix.rpartition(".")[2], []).append((_suffix, _part))
_DOWN_OF = {spelling.up: spelling.down for spelling in SPELLINGS}
_OF_ADAPTER = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)\.[^.]+\.weight")  # PEFT's, with any name of it
_ADAPTER_PARTS = {"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude"}


def parse(name: str) -> tuple[str, str] | None:
    """Return the layer and the part of it that a tensor's name stands for: up, down, mid, alpha, scalar, lora_bias,
    magnitude, or what a kind calls it. A layer is that of a weight, or `<layer>.bias` for the bias beside it. None for
    a name that is no part of any kind that is read."""
    for suffix, part in _BY_END.get(name.rpartition(".")[2], ()):
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)] + (".bias" if part in _BESIDE else ""), part
    named = _OF_ADAPTER.fullmatch(name)
    return named and (named[1], _ADAPTER_PARTS[named[2]])


def down_of(up_suffix: str) -> str:
    """Return the suffix that pairs with `up_suffix`."""
    return _DOWN_OF.get(up_suffix) or up_suffix.replace(".lora_B.", ".lora_A.")
