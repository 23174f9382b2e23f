"""The tensors of a checked safetensors file: one mapping of its bytes, and views of it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate, groupby
from operator import attrgetter, mul
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from .faults import UnreadableFileError, quote
from .guard import Header, opened
from .layers import TensorInfo

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NO_NUMBER = {
    "F64": (np.int64, 0x47EF_FFFF_E000_0001), "F32": (np.int32, 0x7F80_0000), "F16": (np.int16, 0x7C00),
    "BF16": (np.int16, 0x7F80), "F8_E4M3": (np.int8, 0x7F), "F8_E5M2": (np.int8, 0x7C),
}  # fmt: skip  # integers of a float's width, and the least of those that, read as that float, fp32 cannot hold
_AT_ONCE = 2**19  # bytes, which stay in a core's cache
_MAPPED = os.name != "nt"


def contents(header: Header, mapped: bool = True) -> Tensor:
    """Return all bytes of the file, an ordinary tensor whatever the mode.

    The file is `mapped` privately and its pages are read when they are used; else, and on Windows, where a mapped file
    cannot be replaced, it is read into memory and closed. Raises UnreadableFileError when there is no room for it, or
    it has become shorter.
    """
    with torch.inference_mode(False), opened(header.path) as file:
        try:
            data = _mapping(file, header.size) if mapped and _MAPPED else bytearray(header.size)
        except (MemoryError, OSError, ValueError) as error:
            raise UnreadableFileError(_too_large(header, error)) from None
        if isinstance(data, bytearray) and file.readinto(data) != header.size:
            raise UnreadableFileError(f"{quote(header.path.name)} has changed while it was read; try again.")
        return torch.frombuffer(data, dtype=torch.uint8)


def _mapping(file: BinaryIO, size: int) -> mmap.mmap:
    return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)


def _too_large(header: Header, error: Exception) -> str:
    return (
        f"{quote(header.path.name)} of {header.size / 1e9:.1f} GB cannot be opened ({error or 'not enough memory'}); "
        "check that the file is complete and is a LoRA, which is much smaller than a model."
    )


def tensors_of(header: Header, held: Tensor) -> dict[str, Tensor]:
    """Return every tensor of the file in its own dtype, as views of its `contents`."""
    with torch.inference_mode(False):
        typed = {dtype: _typed(held, _DTYPES[dtype]) for dtype in {info.dtype for info in header.tensors.values()}}
        return {name: _view(held, typed[info.dtype], header.data_start, info) for name, info in header.tensors.items()}


def all_finite(header: Header, held: Tensor) -> bool:
    """Return whether there is no NaN or infinity, nor what would be one in fp32, in the `contents` of the file."""
    data = held.numpy()[header.data_start :]
    return all(_finite(data[start:end], *_NO_NUMBER[dtype]) for dtype, start, end in _runs(header.tensors))


def _typed(held: Tensor, dtype: torch.dtype) -> Tensor:
    return held[: held.numel() // dtype.itemsize * dtype.itemsize].view(dtype)


def _view(held: Tensor, typed: Tensor, data_start: int, info: TensorInfo) -> Tensor:
    first, odd = divmod(data_start + info.start, typed.itemsize)
    if odd:
        return held[data_start + info.start : data_start + info.end].clone().view(typed.dtype).view(info.shape)
    return typed.as_strided(info.shape, _strides(info.shape), first)


@lru_cache(1024)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(shape[:0:-1], mul, initial=1))[::-1] if shape else ()


def _runs(described: Mapping[str, TensorInfo]) -> Iterator[tuple[str, int, int]]:
    """Type, start and end of the floats of one type that follow each other in the file, which has no holes."""
    ordered = sorted(described.values(), key=attrgetter("start"))
    for dtype, group in groupby(ordered, key=attrgetter("dtype")):
        infos = list(group)
        if dtype in _NO_NUMBER:
            yield dtype, infos[0].start, infos[-1].end


def _finite(data: np.ndarray, integer: type[np.signedinteger], least: int) -> bool:
    """Positive ones are found among the largest of signed integers, negative ones of unsigned."""
    signed = data.view(integer)
    unsigned = data.view(f"u{signed.dtype.name}")
    step, sign = _AT_ONCE // signed.itemsize, 1 << 8 * signed.itemsize - 1
    for at in range(0, len(signed), step):
        if signed[at : at + step].max() >= least or unsigned[at : at + step].max() >= least + sign:
            return False
    return True
