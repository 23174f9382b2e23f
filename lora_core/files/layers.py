"""Finds the layers of a LoRA: pieces that belong together, whose shapes agree; judged from a file's header alone.

A layer of which a piece is missing or does not fit is refused with its file, never applied in part: such files are cut
off or tampered with. What belongs to no layer at all is left out, and named (`strays`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite, prod
from typing import NamedTuple

from ..kinds import KINDS, Correction
from . import spelling
from .faults import quote, refuse
from .spelling import LORA_BIAS, SCALAR

MAX_ALPHA = 1e4
LARGEST = (2 - 2.0**-23) * 2.0**127  # of fp32, which everything is computed in
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
PLAIN = ("up", "down", "mid")
MAGNITUDES = ("dora_scale", "magnitude")
RESHAPE = "reshape_weight"
_KIND_OF = {part: kind for kind, parts in ((None, PLAIN), *((k, k.PARTS) for k in KINDS)) for part in parts}
_BESIDE_FACTORS = {"alpha", SCALAR, LORA_BIAS, RESHAPE, *MAGNITUDES}
_NO_LAYER = {"alpha", SCALAR, LORA_BIAS}  # change nothing by themselves


class TensorInfo(NamedTuple):
    """`start` and `end` are bytes from the start of the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0


class LayerKeys(NamedTuple):
    """The keys under which a file holds one layer, by the part they are; `kind` is None for a plain LoRA."""

    kind: type[Correction] | None
    keys: Mapping[str, str]

    def own(self) -> dict[str, str]:
        """Without what goes with several kinds: alpha, scalar, a bias, the magnitudes of DoRA, and a new shape."""
        return {part: key for part, key in self.keys.items() if part not in _BESIDE_FACTORS}


def check_layers(source: str, tensors: Mapping[str, TensorInfo]) -> dict[str, LayerKeys]:
    """Return the layers among `tensors`, in order of first appearance, judged from shapes alone.

    Tensors that belong to no layer, or mean nothing there, are in none. Raises UnsafeFileError when pieces do not pair
    or disagree.
    """
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        if place := spelling.parse(name):
            layer, part = place
            first = found.setdefault(layer, {}).setdefault(part, name)
            if first is not name:
                refuse(source, f"has {quote(name)} beside {quote(first)}, which is the same factor")
    layers: dict[str, LayerKeys] = {}
    sound: dict[tuple, type[Correction] | None] = {}  # kinds of layers by all that is checked of them
    for name, keys in found.items():
        if not keys.keys() <= _NO_LAYER:
            shapes = tuple([(part, key[len(name) :], *tensors[key][:2]) for part, key in keys.items()])
            if shapes not in sound:
                sound[shapes] = _checked(source, name, keys, tensors)
            layers[name] = LayerKeys(sound[shapes], _with_meaning(sound[shapes], keys))
    return layers


def _with_meaning(kind: type[Correction] | None, keys: Mapping[str, str]) -> Mapping[str, str]:
    """LyCORIS multiplies a change by a scalar in kinds that have a scale; PEFT adds a bias to plain LoRAs alone."""
    without = set()
    if kind is not None and not kind.HAS_SCALE:
        without.add(SCALAR)
    if kind is not None or any(part in keys for part in (RESHAPE, *MAGNITUDES)):
        without.add(LORA_BIAS)
    return {part: key for part, key in keys.items() if part not in without} if without & keys.keys() else keys


def _checked(
    source: str, name: str, keys: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> type[Correction] | None:
    """The kind of a layer that makes sense."""
    held = {_KIND_OF[part] for part in keys if part in _KIND_OF}
    claims = [kind for kind in (None, *KINDS) if kind in held]
    if not claims:
        refuse(source, f"has {quote(next(iter(keys.values())))} without the factors that belong to it")
    if len(claims) > 1:
        names = " and ".join(kind.kind if kind else "LoRA" for kind in claims)
        refuse(source, f"changes {quote(name)} twice, as {names}")
    if claims[0] is None:
        _check_pair(source, name, keys)
    _check(source, name, LayerKeys(claims[0], keys), tensors)
    return claims[0]


def _check_pair(source: str, name: str, keys: Mapping[str, str]) -> None:
    up, down, mid = map(keys.get, PLAIN)
    if up is None or down is None or spelling.down_of(up[len(name) :]) != down[len(name) :]:
        held, lacked = next((key, ("down" if key is up else "up")) for key in (up, down, mid) if key)
        refuse(source, f"has {quote(held)} without the {lacked} factor that pairs with it")


def _check(source: str, name: str, layer: LayerKeys, tensors: Mapping[str, TensorInfo]) -> None:
    own = layer.own()
    shapes = {part: tensors[key].shape for part, key in own.items()}
    if layer.kind is None:
        _check_plain(source, own, tensors)
    else:
        for key in own.values():
            check_factor(source, key, tensors[key], (1, 5))
        if fault := layer.kind.fault(shapes):
            refuse(source, f"has a {layer.kind.kind} layer {quote(name)} that is not valid: {fault}")
    for part, what in (("alpha", "an alpha"), (SCALAR, "a scalar")):
        if key := layer.keys.get(part):
            _check_is_number(source, key, tensors[key], what)
    if (key := layer.keys.get(LORA_BIAS)) and layer.kind is None:
        _check_bias(source, key, tensors[key], shapes["up"][0])
    _check_magnitudes(source, layer, tensors)
    _check_reshape(source, layer, tensors)


def _check_plain(source: str, keys: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    for part, dimensions in (("up", (2, 5)), ("down", (2, 5)), ("mid", (3, 5))):
        if part in keys:
            check_factor(source, keys[part], tensors[keys[part]], dimensions)
    up, down = tensors[keys["up"]].shape, tensors[keys["down"]].shape
    mid = tensors[keys["mid"]].shape if "mid" in keys else (down[0], down[0])
    name = quote(keys["up"])
    if mid[0] != up[1] or mid[1] != down[0]:
        middle = f" around {list(mid)}" if "mid" in keys else ""
        refuse(source, f"has factors of different ranks in {name}: {list(up)}, {list(down)}{middle}")
    if prod(up[2:]) != 1 or "mid" in keys and prod(down[2:]) != 1:
        refuse(source, f"gives {name} or its partner a kernel above 1x1: {list(up)}, {list(down)}")


def check_factor(source: str, key: str, info: TensorInfo, dimensions: tuple[int, int]) -> None:
    if info.dtype not in FLOATS:
        refuse(source, f"stores the factor {quote(key)} as {info.dtype}", "re-save it in fp16, bf16 or fp32")
    if not dimensions[0] <= len(info.shape) <= dimensions[1] or 0 in info.shape:
        allowed = f"{dimensions[0]} to {dimensions[1]} dimensions"
        refuse(source, f"has a factor {quote(key)} of shape {list(info.shape)}, where {allowed} belong")


def _check_magnitudes(source: str, layer: LayerKeys, tensors: Mapping[str, TensorInfo]) -> None:
    keys = [layer.keys[part] for part in MAGNITUDES if part in layer.keys]
    if len(keys) > 1:
        refuse(source, f"has {quote(keys[0])} beside {quote(keys[1])}, which is the same factor")
    if not keys:
        return
    if layer.kind is not None and not layer.kind.TAKES_DORA:
        refuse(source, f"has {quote(keys[0])} on {layer.kind.kind} weights, which have no such scale")
    check_factor(source, keys[0], tensors[keys[0]], (1, 5))
    shape = tensors[keys[0]].shape
    if len(shape) - shape.count(1) > 1:
        refuse(source, f"has a scale {quote(keys[0])} of shape {list(shape)}, not one number per row or column")


def _check_reshape(source: str, layer: LayerKeys, tensors: Mapping[str, TensorInfo]) -> None:
    if (key := layer.keys.get(RESHAPE)) is None:
        return
    info = tensors[key]
    if layer.kind is not None or any(part in layer.keys for part in MAGNITUDES):
        refuse(source, f"has {quote(key)} on weights that are not plain LoRA")
    if info.dtype not in ("I64", "I32") or len(info.shape) != 1 or not 2 <= info.shape[0] <= 5:
        refuse(source, f"has {quote(key)} that is {info.dtype} of shape {list(info.shape)}, not the shape of a weight")


def _check_is_number(source: str, key: str, info: TensorInfo, what: str) -> None:
    if prod(info.shape) != 1 or info.dtype == "BOOL":
        refuse(source, f"has {what} {quote(key)} that is {info.dtype} of shape {list(info.shape)}, not one number")


def _check_bias(source: str, key: str, info: TensorInfo, rows: int) -> None:
    check_factor(source, key, info, (1, 1))
    if info.shape != (rows,):
        refuse(source, f"has a bias {quote(key)} of {info.shape[0]} numbers on a layer of {rows} rows")


def check_alpha(source: str, key: str, alpha: float) -> float:
    """0 switches a layer off. The same limits hold for a scalar."""
    if not isfinite(alpha) or abs(alpha) > MAX_ALPHA:
        refuse(source, f"sets {quote(key)} to {alpha}, outside -{MAX_ALPHA:g} to {MAX_ALPHA:g}")
    return alpha


def check_limit(source: str, key: str, limit: float) -> float:
    """Return the `alpha` of OFT; 0 means none."""
    if not 0 <= limit < inf:
        refuse(source, f"sets {quote(key)} to {limit}, where a limit of 0 or more belongs")
    return limit


def check_finite(source: str, key: str, low: float, high: float) -> None:
    """`low` and `high` are the extremes of a tensor, which are NaN when any value is."""
    if not (isfinite(low) and isfinite(high)):
        refuse(
            source,
            f"holds NaN or infinite values in {quote(key)}",
            "it would make images black; train it again, or repair it with LoRA Health",
        )
    if max(-low, high) > LARGEST:
        refuse(source, f"holds {max(-low, high):.3g} in {quote(key)}, above the {LARGEST:.3g} of fp32",
               "it would make images black, so train it again")  # fmt: skip
