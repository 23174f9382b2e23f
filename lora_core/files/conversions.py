"""Files whose names are changed before they are looked up: those of comfy/lora_convert.py, recognised by the same keys,
and all of XLabs' for FLUX.1, of which ComfyUI reads one kind (USO)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from .faults import quote, refuse


class _Shaped(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


_T = TypeVar("_T", bound=_Shaped)
_INPUT = "img_in"

_CONTROL = ((".lora_B.bias", ".diff_b"), ("_norm.scale", "_norm.set_weight"))  # Black Forest Labs' control LoRAs
_XLABS = (
    (".down.weight", ".lora_down.weight"),
    (".up.weight", ".lora_up.weight"),
    (".qkv_lora2.", ".txt_attn.qkv."),
    (".qkv_lora1.", ".img_attn.qkv."),
    (".proj_lora1.", ".img_attn.proj."),
    (".proj_lora2.", ".txt_attn.proj."),
    (".qkv_lora.", ".linear1_qkv."),
    (".proj_lora.", ".linear2."),
    (".processor.", "."),
)
_XLABS_KEY = re.compile(
    r"(diffusion_model\.)?(double|single)_blocks\.\d+\.processor\.(qkv|proj)_lora[12]?\.(down|up)\.weight"
)


def converted(source: str, items: Mapping[str, _T], numbers: Callable[[list[int]], _T]) -> dict[str, _T]:
    """`items` (anything with a shape) under the names that ComfyUI's key maps have; `numbers` makes one of a list.

    Raises UnsafeFileError when two would get the same name.
    """
    if f"{_INPUT}.lora_A.weight" in items and "single_blocks.0.norm.key_norm.scale" in items:
        made = _renamed(source, items, _CONTROL, "diffusion_model.")
        up, down = (items.get(f"{_INPUT}.lora_{part}.weight") for part in "BA")
        if up is not None and down is not None:
            made[f"diffusion_model.{_INPUT}.reshape_weight"] = numbers([up.shape[0], down.shape[1]])
        return made
    if "lora_unet__blocks_0_cross_attn_k.lora_down.weight" in items:  # Wan Fun
        return _renamed(source, items, (("lora_unet__", "lora_unet_"),))
    if any(".processor." in name and _XLABS_KEY.fullmatch(name) for name in items):
        return _renamed(source, items, _XLABS, "diffusion_model.")
    return dict(items)


def _renamed(
    source: str, items: Mapping[str, _T], rules: tuple[tuple[str, str], ...], prefix: str = ""
) -> dict[str, _T]:
    made: dict[str, _T] = {}
    for name, item in items.items():
        renamed = name if name.startswith(prefix) else prefix + name
        for old, new in rules:
            renamed = renamed.replace(old, new)
        if renamed in made:
            refuse(source, f"has {quote(name)} beside another tensor of the same meaning")
        made[renamed] = item
    return made
