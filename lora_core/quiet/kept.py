"""Directions on disk: one safetensors file for all layers of a base, read by mapping it.

Metadata: `lora_loom.quiet` is the version; `layers` says, as JSON, which input each layer has, and `rests` the mean of
the eigenvalues that each input leaves out; `sshs_model_hash` is of the data. Tensors: `N.values` (pairs,) fp32 and
`N.vectors` (pairs, width) fp16 of input N. Layers that share an input share its directions.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..files import guard, reader
from ..files.packing import Packed
from ..files.save import replace_soon, write_whole
from ..nested_hash import bytes_of
from .directions import Directions

_MARK, _VERSION, _LAYERS, _RESTS, _HASH = "lora_loom.quiet", "1", "layers", "rests", "sshs_model_hash"
_TYPES = {torch.float32: "F32", torch.float16: "F16"}


def write(path: Path, layers: Mapping[str, Directions]) -> None:
    """Write the directions of layers by name, whole or not at all. Raises OSError when the disk does not take them."""
    inputs = list({id(own): own for own in layers.values()}.values())
    number = {id(own): at for at, own in enumerate(inputs)}
    tensors = {f"{at}.values": own.values for at, own in enumerate(inputs)}  # first, where fp32 is aligned
    tensors |= {f"{at}.vectors": own.vectors for at, own in enumerate(inputs)}
    entries, at, digest = {}, 0, hashlib.sha256()
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]
        }  # fmt: skip
        at += tensor.nbytes
        digest.update(bytes_of(tensor))
    told = {
        _MARK: _VERSION, _HASH: digest.hexdigest(), _RESTS: json.dumps([own.rest for own in inputs]),
        _LAYERS: json.dumps({name: number[id(own)] for name, own in layers.items()}),
    }  # fmt: skip
    head = Packed(entries, memoryview(b"")).header(told)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, head, *map(bytes_of, tensors.values()))


def keep(path: Path, layers: Mapping[str, Directions], source: Path | None) -> None:
    """As `write`; where the file system links files, as another name of `source`, which holds them already."""
    link = path.with_name(f".{secrets.token_hex(8)}.tmp")
    if source is not None:
        with suppress(OSError, AttributeError):
            os.link(source, link)
            try:
                return replace_soon(link, path)
            finally:
                link.unlink(missing_ok=True)  # it stays when both are names of one file
    write(path, layers)


def read(path: Path) -> dict[str, Directions] | None:
    """Return the directions of layers by name, the vectors mapped from the file; None when there are none, or they are
    not what was written."""
    try:
        found = guard.contents(path)
        header = guard.Header(path, *found[:2], {}, *found[2:])
        layers = _layers(header, reader.contents(header))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    with suppress(OSError):
        os.utime(path)  # the time of its last use
    return layers


def _layers(header: guard.Header, held: Tensor) -> dict[str, Directions] | None:
    told = header.metadata
    digest = hashlib.sha256(held[header.data_start :].numpy().data).hexdigest()
    if told[_MARK] != _VERSION or told[_HASH] != digest:
        return None
    tensors = reader.tensors_of(header, held)
    rests = [float(rest) for rest in json.loads(told[_RESTS])]
    inputs = [Directions(tensors[f"{at}.vectors"], tensors[f"{at}.values"], rest) for at, rest in enumerate(rests)]
    sound = all(_is_sound(own) for own in inputs)
    return {name: inputs[at] for name, at in json.loads(told[_LAYERS]).items()} if sound else None


def _is_sound(own: Directions) -> bool:
    shapes = own.vectors.shape == (len(own.values), own.vectors.shape[1]) and own.values.dim() == 1
    types = own.vectors.dtype == torch.float16 and own.values.dtype == torch.float32
    return shapes and types and 0 <= own.rest < math.inf
