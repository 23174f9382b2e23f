"""Tells what diffusers makes of files, as sentences for the person who saves one.

Its `loaders/lora_conversion_utils.py` reads some networks' files in other formats than its own, not always with every
layer. How it is tested: tests/nodes/test_diffusers.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..adapter import Adapter
from ..families.diffusers_names import WAN_BLOCKS
from .one_rank import possible_rank

_BUT_WAN_BLOCKS = rf"(?!{WAN_BLOCKS}$).*"
_NONE = r"(?!)"
_PASSED_OVER = {  # by ComfyUI's model class and format: the layers that diffusers 0.42 does not read
    ("Flux(Schnell)?", "kohya"): _NONE,
    ("Flux2", "kohya"): r"final_layer\.adaLN_modulation\.1|\w+_stream_modulation\w*\.lin",
    ("QwenImage", "kohya"): _NONE,
    ("QwenImage", "native"): _NONE,
    ("ZImage", "kohya"): r"x_embedder|final_layer\..*",
    (r"WAN2[12]_\w+", "kohya"): _BUT_WAN_BLOCKS,
    (r"WAN2[12]_\w+", "native"): _BUT_WAN_BLOCKS,
}
_NO_DORA = r"WAN2[12]_\w+"  # read by ComfyUI's names, under which no magnitudes are looked for
_FIXED = "before August 2026"  # huggingface/diffusers#14409


def notes(config_class: str, style: str, adapter: Adapter, cure: str) -> list[str]:
    """Tell what diffusers gets wrong in a file of that style, where it reads one by itself, with the cure for it."""
    passed_over = next(
        (layers for (pattern, known), layers in _PASSED_OVER.items()
         if known == style and re.fullmatch(pattern, config_class)), None,
    )  # fmt: skip
    if passed_over is None:
        return []
    told, layers = [], [*adapter.layers, *adapter.others]
    if lost := [name for name in layers if re.fullmatch(passed_over, name.removeprefix("diffusion_model."))]:
        what = "cannot load this file because of" if passed_over is _BUT_WAN_BLOCKS else "leaves out"
        told.append(f"diffusers {what} {len(lost)} of its {len(layers)} layers, for example {lost[0]}; {cure}")
    if len({possible_rank(layer) for layer in adapter.low_ranks().values()}) > 1:
        told.append(
            f"diffusers {_FIXED} applies the layers of this file at wrong strengths, because they have different "
            f"ranks; {cure}"
        )
    return told


def check_dora(config_class: str, family: str) -> None:
    """Raises ValueError for a network whose DoRA diffusers does not read in its own format."""
    if re.fullmatch(_NO_DORA, config_class):
        raise ValueError(f"diffusers does not read DoRA of {family}; save in the 'comfyui' format, or without DoRA")


def filling(style: str, filled: int, size: int) -> list[str]:
    """Return what it cost, in bytes of a file of that size, that layers had to be alike."""
    if not filled:
        return []
    which, who = ("all layers", f"diffusers {_FIXED}") if style == "peft" else ("the text layers", "diffusers")
    return [
        f"the file is larger because of {who}, which needs the same rank in {which}: {filled / 1e6:.2f} of "
        f"{size / 1e6:.2f} MB are zeros; the comfyui format needs none"
    ]


def cure_of(unnamed: Sequence[str]) -> str:
    """Return what to do for a reader's sake; `unnamed` are the layers that diffusers' own format has no names for."""
    if not unnamed:
        return "for diffusers, save in the diffusers format"
    return (
        f"for diffusers, leave out layers that have no name there, such as {unnamed[0]}, and save in the diffusers "
        "format"
    )
