"""The tensors of a checked safetensors file: one mapping of its bytes, and views of it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .guard import Header
from .layers import FLOATS, TensorInfo

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_MAPPED = os.name != "nt"


def tensors_of(header: Header) -> dict[str, Tensor]:
    """Every tensor of the file in its own dtype, ordinary tensors whatever the mode.

    The file is mapped privately and its pages are read when they are used. On Windows, where a mapped file cannot be
    replaced, it is read into memory and closed.
    """
    with torch.inference_mode(False), open(header.path, "rb") as file:
        if _MAPPED:
            data: bytearray | mmap.mmap = mmap.mmap(file.fileno(), header.size, access=mmap.ACCESS_COPY)
        else:
            data = bytearray(header.size)
            file.readinto(data)
        held = torch.frombuffer(data, dtype=torch.uint8)[header.data_start :]
        return {name: _view(held[info.start : info.end], info) for name, info in header.tensors.items()}


def all_finite(tensors: Mapping[str, Tensor], described: Mapping[str, TensorInfo]) -> bool:
    """Whether there is no NaN or infinity, in one pass over what lies together; False where fp8 makes that unknown."""
    return all(_finite(tensors, run) for run in _runs(described))


def _view(held: Tensor, info: TensorInfo) -> Tensor:
    dtype = _DTYPES[info.dtype]
    aligned = held if held.storage_offset() % dtype.itemsize == 0 else held.clone()
    return aligned.view(dtype).view(info.shape)


def _runs(described: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    """Names of floats of one type that follow each other in the file."""
    run: list[str] = []
    for name, info in sorted(described.items(), key=lambda item: item[1].start):
        if run and described[run[0]].dtype != info.dtype:
            yield run
            run = []
        if info.dtype in FLOATS:
            run.append(name)
    if run:
        yield run


def _finite(tensors: Mapping[str, Tensor], run: list[str]) -> bool:
    if tensors[run[0]].dtype.itemsize == 1:
        return False
    first, size = tensors[run[0]], sum(tensors[name].numel() for name in run)
    end = tensors[run[-1]].data_ptr() + tensors[run[-1]].nbytes
    if end - first.data_ptr() == size * first.element_size():
        flats = [first.as_strided((size,), (1,))]
    else:
        flats = [tensors[name].flatten() for name in run]
    return all(bool(torch.isfinite(torch.stack(torch.aminmax(flat))).all()) for flat in flats)
