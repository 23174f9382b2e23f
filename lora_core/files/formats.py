"""LoRA files to Adapter and back: kohya, PEFT / diffusers and ComfyUI's native spelling.

`strength` tells how strong a file is meant. What is written never needs metadata for that.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..adapter import Adapter
from ..kinds import Correction, Difference, DoRA, Padded
from ..low_rank import LowRank
from . import bundled, guard, layers, one_rank, products, reader, spelling, strays, strength
from .conversions import converted
from .faults import UnsupportedWeightsError, quote, refuse
from .written import FileLayer, Style, cast_to, factors, feasible, since_peft

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


_MAGNITUDES = (spelling.DORA_SCALE, spelling.MAGNITUDE)


class _Piece(NamedTuple):
    target: FileLayer
    layer: LowRank
    magnitude: Tensor | None


def read(path: str | os.PathLike[str], mapped: bool = True, broken: bool = False) -> Adapter:
    """Return the file's adapter, layers named as the file spells them, factors memory-mapped, or not, and in the file's
    dtype.

    Tensors of no known kind are left out, and named. Factors may hold NaN or infinite values only when `broken`. Raises
    guard.UnsafeFileError before any tensor is touched, and for such values, guard.UnreadableFileError when the file is
    gone, or UnsupportedWeightsError when nothing is left.
    """
    header = guard.inspect(path)
    source = Path(path).name
    described = converted(source, header.tensors, _numbers_info)
    same = described.keys() == header.tensors.keys()
    found = header.layers if same else layers.check_layers(source, described)
    left_out = _left_out(source, found, described)
    held = reader.contents(header, mapped)
    tensors = converted(source, reader.tensors_of(header, held), torch.tensor)
    if not broken and not reader.all_finite(header, held):
        _check_finite(source, found, tensors)
    config = strength.peft_config(source, header.metadata, strength.config_of(header.path))
    return _with_the_rest(_adapter(source, found, tensors, header.metadata, config), left_out, tensors)


def decode(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, source: str = "LORA_MODEL"
) -> Adapter:
    """As `read`, from tensors in memory, such as ComfyUI's LORA_MODEL. `source` is what errors call them."""
    tensors = {n: tensor.detach() for n, tensor in converted(source, tensors, torch.tensor).items()}
    described = {name: layers.TensorInfo(_dtype_name(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    found = layers.check_layers(source, described)
    left_out = _left_out(source, found, described)
    _check_finite(source, found, tensors)
    config = strength.peft_config(source, metadata or {})
    return _with_the_rest(_adapter(source, found, tensors, metadata or {}, config), left_out, tensors)


def encode(
    adapter: Adapter,
    style: Style,
    names: Mapping[str, Sequence[FileLayer]] | None = None,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """Return the tensors of a file: contiguous CPU clones in `dtype`.

    `names` says where a layer goes, under its own name by default. `native` and `kohya` write
    `.lora_down.weight`, `.lora_up.weight` and `.alpha`; `peft` writes `.lora_A.weight` and `.lora_B.weight` (for a
    UNet what diffusers wrote before PEFT) with the scaling folded into B. A rank above what the weight can have is cut
    without loss, and where one factor does not suit fp16 both are balanced by powers of two. Layers that must be alike
    for a reader to get their strengths right are filled up with zeros, see `one_rank`. Of other kinds DoRA per
    row can be written: as `dora_scale`, with magnitudes relative to W's norms, or for `peft` as
    `lora_magnitude_vector`, relative to those of the sum (`DoRA.relative_to`); always in fp32. LoHa and LoKr are
    written piece by piece (`products`), not for `peft`. Raises ValueError when a value does not fit `dtype`, and for
    other kinds.
    """
    if style not in ("native", "kohya", "peft"):
        raise ValueError(f"unknown style {style!r}; use native, kohya or peft")
    tensors: dict[str, Tensor] = {}
    before_peft = style == "peft" and not adapter.others
    with torch.inference_mode(False), torch.no_grad():
        vectors = _vectors(adapter, style)
        for name, values in vectors.items():
            for target in (names or {}).get(name, (FileLayer(name),)):
                part = values if target.rows is None else values.narrow(0, *target.rows)
                key = _vector_key(target.name)
                tensors[key] = cast_to(key, target.reorder(part) if target.reorder else part, dtype)
        whole = products.found(adapter, style)
        for key, values in products.tensors(whole, names or {}):
            tensors[key] = cast_to(key, values, dtype)
        pieces = list(_pieces(adapter, style, names, {*vectors, *whole}))
        ranks = one_rank.common_ranks(style, ((piece.target.name, piece.layer) for piece in pieces))
        for target, layer, magnitude in pieces:
            rank = ranks.get(one_rank.network_of(style, target.name), 0)
            part = one_rank.filled(feasible(layer), rank)
            part = replace(part, lora_B=target.reorder(part.lora_B)) if target.reorder else part
            target = target if before_peft or style != "peft" else target._replace(name=since_peft(target.name))
            written = factors(target.name, part, style, before_peft, dtype)
            if magnitude is not None:
                written |= _magnitudes(target, magnitude, layer.kernel, style)
            for key, tensor in written.items():
                if key in tensors:
                    raise ValueError(f"two layers would get the same name {key!r} in the file; save in another format")
                tensors[key] = cast_to(key, tensor, torch.float32 if key.endswith(_MAGNITUDES) else dtype)
    return tensors


def zeros(adapter: Adapter, style: Style, names: Mapping[str, Sequence[FileLayer]] | None = None) -> int:
    """Return how many numbers `encode` adds so that layers are alike."""
    apart = {*_vectors(adapter, style), *products.found(adapter, style)}
    pieces = list(_pieces(adapter, style, names, apart))
    ranks = one_rank.common_ranks(style, ((piece.target.name, piece.layer) for piece in pieces))
    found = ((piece.layer, ranks.get(one_rank.network_of(style, piece.target.name), 0)) for piece in pieces)
    return sum(one_rank.zeros(layer, rank) for layer, rank in found)


def _numbers_info(numbers: list[int]) -> layers.TensorInfo:
    return layers.TensorInfo("I64", (len(numbers),))


def _pieces(
    adapter: Adapter, style: Style, names: Mapping[str, Sequence[FileLayer]] | None, apart: Container[str]
) -> Iterator[_Piece]:
    """Every layer of the file, but for what goes `apart`."""
    for name, (layer, magnitude) in _writable(adapter, style, apart).items():
        for target in (names or {}).get(name, (FileLayer(name),)):
            yield _Piece(target, layer if target.rows is None else layer.rows(*target.rows), magnitude)


def _vectors(adapter: Adapter, style: Style) -> dict[str, Tensor]:
    """Return what is added to biases and norms. Raises ValueError when `style` cannot hold it."""
    found = {
        name: items[0].values for name, items in adapter.others.items()
        if len(items) == 1 and type(items[0]) is Difference and items[0].values.ndim == 1
    }  # fmt: skip
    if found and style == "peft":
        raise ValueError(
            f"{len(found)} biases and norms are changed, for example {next(iter(found))}, which the diffusers format "
            "cannot contain; save in the 'comfyui' format"
        )
    return found


def _vector_key(name: str) -> str:
    return f"{name.removesuffix('.bias')}.diff_b" if name.endswith(".bias") else f"{name}.diff"


def _writable(
    adapter: Adapter, style: Style, apart: Container[str]
) -> dict[str, tuple[LowRank, Tensor | None]]:  # fmt: skip
    """The low-rank part of each layer and the magnitudes that the style holds with it, but for what goes `apart`."""
    found: dict[str, tuple[LowRank, Tensor | None]] = {name: (layer, None) for name, layer in adapter.layers.items()}
    for name, items in ((name, items) for name, items in adapter.others.items() if name not in apart):
        first, wanted = items[0], "sum" if style == "peft" else "base"
        single = len(items) == 1 and name not in found
        if not (
            single and isinstance(first, DoRA) and isinstance(first.update, LowRank) and first.axis == 0
            and first.norm_of == wanted
        ):  # fmt: skip
            kinds = " and ".join(item.kind for item in items)
            raise ValueError(f"{name} is changed by {kinds} weights, which cannot be written as {style}")
        found[name] = first.update, first.magnitude
    return found


def _magnitudes(target: FileLayer, magnitude: Tensor, kernel: tuple[int, ...], style: Style) -> dict[str, Tensor]:
    own = magnitude if target.rows is None else magnitude.narrow(0, *target.rows)
    own, ones = target.reorder(own) if target.reorder else own, (1,) * len(kernel)
    if style == "peft":
        return {target.name + spelling.MAGNITUDE: own.reshape(1, -1, *ones) if kernel else own}
    return {target.name + spelling.DORA_SCALE: own.reshape(-1, 1, *ones)}


def _dtype_name(tensor: Tensor) -> str:
    return _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))


def _left_out(source: str, found: Mapping[str, layers.LayerKeys], tensors: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the tensors that are part of no layer. Raises UnsupportedWeightsError when there is no layer,
    or what one means depends on them."""
    used = {key for layer in found.values() for key in layer.keys.values()}
    names = tuple([name for name in tensors if name not in used])
    if fault := strays.pieces(source, names, found) if found else strays.alone(source, names):
        raise UnsupportedWeightsError(fault)
    return names


def _with_the_rest(adapter: Adapter, names: Iterable[str], tensors: Mapping[str, Tensor]) -> Adapter:
    embeddings, left_out = bundled.taken(tensors, names)
    return replace(adapter, left_out=left_out, embeddings=embeddings)


def _check_finite(source: str, found: Mapping[str, layers.LayerKeys], tensors: Mapping[str, Tensor]) -> None:
    for layer in found.values():
        for part, key in layer.keys.items():
            if part not in ("alpha", layers.SCALAR, layers.RESHAPE):
                for piece in _widened(tensors[key]):
                    layers.check_finite(source, key, *map(float, torch.aminmax(piece)))


def _widened(tensor: Tensor) -> Iterable[Tensor]:
    """fp8, which has no order here, as fp16, a little at a time."""
    return map(_factor, tensor.flatten().split(2**18)) if tensor.dtype.itemsize == 1 else (tensor,)


def _adapter(
    source: str, described: Mapping[str, layers.LayerKeys], tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
    config: Mapping[str, Any],
) -> Adapter:  # fmt: skip
    found = {name: _layer(source, name, layer, tensors, config) for name, layer in described.items()}
    plain = {name: layer for name, layer in found.items() if isinstance(layer, LowRank)}
    others: dict[str, tuple[Correction, ...]] = {
        name: (layer,) for name, layer in found.items() if not isinstance(layer, LowRank)
    }
    for name, key in ((name, layer.keys.get(layers.LORA_BIAS)) for name, layer in described.items()):
        if key is not None:  # PEFT: y += alpha / rank * (B A x + bias)
            bias = Difference(_factor(tensors[key]).float() * plain[name].scaling)
            others[f"{name}.bias"] = (*others.get(f"{name}.bias", ()), bias)
    return Adapter(plain, dict(metadata), others)


def _layer(
    source: str, name: str, layer: layers.LayerKeys, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> LowRank | Correction:
    own = {part: _factor(tensors[key]) for part, key in layer.own().items()}
    alpha = strength.alpha_of(source, name, layer, own, tensors, config)
    made = _plain(own, cast(float, alpha)) if layer.kind is None else layer.kind.from_parts(own, alpha)
    if layers.SCALAR in layer.keys:
        made = made.scaled(strength.scalar_of(source, layer, tensors))
    if key := layer.keys.get(layers.RESHAPE):
        return _padded(source, key, cast(LowRank, made), tensors)
    if key := layer.keys.get("dora_scale"):
        return DoRA.from_scale(made, _factor(tensors[key]))
    if key := layer.keys.get("magnitude"):
        return DoRA(made, _factor(tensors[key]).flatten())
    return made


def _padded(source: str, key: str, made: LowRank, tensors: Mapping[str, Tensor]) -> Padded:
    shape = tuple(tensors[key].tolist())
    if shape[0] != made.shape[0] or prod(shape) != prod(made.shape) or min(shape) < 1:
        refuse(source, f"sets {quote(key)} to {list(shape)}, where its factors make {list(made.shape)}")
    return Padded(replace(made, kernel=shape[2:]))


def _plain(parts: Mapping[str, Tensor], alpha: float) -> LowRank:
    up, down, mid = parts["up"], parts["down"], parts.get("mid")
    if mid is not None:  # folding multiplies: not in half precision
        up, down, mid = (factor.to(torch.promote_types(factor.dtype, torch.float32)) for factor in (up, down, mid))
    if up.dtype != down.dtype:
        dtype = torch.promote_types(up.dtype, down.dtype)
        up, down = up.to(dtype), down.to(dtype)
    return LowRank.from_conv(down, up, alpha, mid)


def _factor(tensor: Tensor) -> Tensor:
    """In a type that can be computed with: every fp8 number is an fp16 number, and nothing here needs fp64."""
    if tensor.dtype == torch.float64:
        return tensor.float()
    return tensor.half() if tensor.dtype.itemsize == 1 else tensor
