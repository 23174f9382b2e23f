"""Refuses a LoRA file before any of its tensors is touched.

ComfyUI's own loader (comfy.utils.load_safetensors) trusts the header; it accepts overlapping and aliased tensors,
holes, trailing bytes, duplicate keys and empty tensors that claim gigabytes. Here the header is read with the
standard library alone, costs memory in proportion to its own length (8 MiB at most), and every rule of the
safetensors format is enforced, then what makes sense of a LoRA: factors that pair, ranks that agree and can exist.
"""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from .faults import UnsafeFileError, quote, refuse
from .layers import Layer, TensorInfo, check_layers
from .names import safe_name, safe_path

__all__ = ["Header", "TensorInfo", "UnsafeFileError", "inspect", "safe_name", "safe_path"]

MAX_HEADER = 8 * 2**20
MAX_TENSORS = 20_000
MAX_NAME = 1_000
MAX_ENTRIES = 5 * MAX_TENSORS  # a tensor has four, and the metadata has the rest
MAX_LIST = 400  # characters; shapes have eight numbers at the most
_TOKENS = re.compile(rb'"[^"]*"|[{\[\]:]')  # of a header without its escaped quotes
_MOST_OF = {b"{": MAX_TENSORS + 2, b":": MAX_ENTRIES, b'"': 3 * MAX_ENTRIES, b"[": MAX_ENTRIES, b"]": MAX_ENTRIES}

DTYPE_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
NO_PICKLE = "such files can run code when opened, so convert it to .safetensors first"


@dataclass(frozen=True)
class Header:
    """`tensors` is in the file's order, `layers` what they make up; `data_start` and `size` are bytes of the file."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    layers: dict[str, Layer]
    data_start: int
    size: int


def inspect(path: str | os.PathLike[str]) -> Header:
    """The header of a sound LoRA file; raises UnsafeFileError naming the file, the key and the cure."""
    path = Path(path)
    _check_suffix(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        refuse(path.name, "is not a regular file", "choose a .safetensors file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = _read_header(file, size, path.name)
    _check_outline(raw, path.name)
    entries = _parse(raw, path.name)
    metadata = _metadata(entries.pop("__metadata__", {}), path.name)
    if len(entries) > MAX_TENSORS:
        refuse(path.name, f"lists {len(entries)} tensors, more than the {MAX_TENSORS} any LoRA needs")
    tensors = {name: _tensor(name, entry, path.name) for name, entry in entries.items()}
    _check_offsets(tensors, size - 8 - len(raw), path.name)
    return Header(path, metadata, tensors, check_layers(path.name, tensors), 8 + len(raw), size)


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pt2", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"):
        refuse(path.name, f"is a {suffix} file", NO_PICKLE)
    if suffix not in (".safetensors", ".sft"):
        refuse(path.name, "is not named .safetensors", "choose a .safetensors file")


def _read_header(file: BinaryIO, size: int, source: str) -> bytes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        _refuse_length(start, length, size, source)
    raw = file.read(length)
    if len(raw) != length:
        refuse(source, f"ends inside its header of {length} bytes")
    if not raw.startswith(b"{"):
        refuse(source, "is not a safetensors file: its header does not start with '{'")
    return raw


def _refuse_length(start: bytes, length: int, size: int, source: str) -> None:
    if start.startswith(b"PK\x03\x04"):
        refuse(source, "is a zip archive (a PyTorch pickle) under another name", NO_PICKLE)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        refuse(source, "is a Python pickle under another name", NO_PICKLE)
    if size < 8 or length <= MAX_HEADER:
        refuse(source, f"is cut short: its header claims {length} bytes and the file has {size}")
    refuse(source, f"claims a header of {length} bytes, more than the {MAX_HEADER} allowed")


def _check_outline(raw: bytes, source: str) -> None:
    """Refuse, before anything is built of it, what takes far more memory as objects than as text: more tables or
    entries or longer lists than any LoRA has, or lists in lists. What is not JSON is left to the parser."""
    outline = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    counts, opened = Counter[bytes](), -1
    for token in _TOKENS.finditer(outline):
        mark = token[0][:1]
        counts[mark] += 1
        if counts[mark] > _MOST_OF[mark]:
            refuse(source, f"has a header of more than {MAX_TENSORS} tables or {MAX_ENTRIES} entries")
        if mark == b"[" and opened >= 0:
            refuse(source, "has a header nested too deeply")
        if opened >= 0 and token.start() - opened > MAX_LIST:
            refuse(source, f"has a list of more than {MAX_LIST} characters in its header")
        opened = token.start() if mark == b"[" else -1 if mark == b"]" else opened
    if opened >= 0 and len(outline) - opened > MAX_LIST:
        refuse(source, "has a header that is not JSON (a list has no end)")


def _parse(raw: bytes, source: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                refuse(source, f"names the key {quote(key)} twice in its header")
            found[key] = value
        return found

    def integer(digits: str) -> int:
        return int(digits) if len(digits) < 20 else refuse(source, f"holds the number {quote(digits)} in its header")

    def no_number(text: str) -> None:
        refuse(source, f"holds {quote(text)} in its header, where only whole numbers belong")

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_int=integer,
                            parse_float=no_number, parse_constant=no_number)  # fmt: skip
    except UnsafeFileError:
        raise
    except UnicodeDecodeError:
        refuse(source, "has a header that is not UTF-8 text")
    except RecursionError:
        refuse(source, "has a header nested too deeply")
    except ValueError as error:
        refuse(source, f"has a header that is not JSON ({error})")
    return header


def _metadata(entry: Any, source: str) -> dict[str, str]:
    if not isinstance(entry, dict):
        refuse(source, "has a __metadata__ that is not a table of text")
    for key, value in entry.items():
        if not isinstance(value, str):
            refuse(source, f"has metadata {quote(key)} that is {type(value).__name__}, not text")
        if _has_surrogate(key) or _has_surrogate(value):
            refuse(source, f"has metadata {quote(key)} that is not valid Unicode")
    return entry


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _tensor(name: str, entry: Any, source: str) -> TensorInfo:
    _check_key(name, source)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(source, f"describes {quote(name)} by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZES:
        refuse(source, f"gives {quote(name)} the unknown dtype {quote(str(dtype))}")
    if not _are_counts(shape) or len(shape) > 8 or prod(shape) > 2**48:
        refuse(source, f"gives {quote(name)} the impossible shape {quote(str(shape))}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(source, f"gives {quote(name)} the impossible data_offsets {quote(str(offsets))}")
    held, needed = offsets[1] - offsets[0], prod(shape) * DTYPE_SIZES[dtype]
    if held != needed:
        refuse(source, f"holds {held} bytes for {quote(name)}, whose shape {shape} in {dtype} needs {needed}")
    if held == 0:
        refuse(source, f"lists {quote(name)}, which holds no data")
    return TensorInfo(dtype, tuple(shape), *offsets)


def _check_key(name: str, source: str) -> None:
    """Cc, Cf, Cs: control, format (bidi, zero-width) and surrogate characters; Zl, Zp: line separators."""
    if not name or len(name) > MAX_NAME:
        refuse(source, f"has a tensor name of {len(name)} characters ({quote(name)})")
    if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name):
        refuse(source, f"has control characters in the tensor name {quote(name)}")


def _are_counts(values: Any) -> bool:
    """A list of whole numbers >= 0; JSON's true is not a number."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_offsets(tensors: Mapping[str, TensorInfo], data_size: int, source: str) -> None:
    """The tensors cover the data section exactly once."""
    if not tensors:
        refuse(source, "holds no tensors", "choose a file that holds a LoRA")
    filled, before = 0, ""
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.end > data_size:
            refuse(source, f"is cut short: {quote(name)} ends at byte {info.end} of {data_size} bytes of data")
        if info.start < filled:
            shared = "is the same bytes as" if info == tensors[before] else "overlaps"
            refuse(source, f"has a tensor {quote(name)} that {shared} {quote(before)} (bytes {info.start} to {filled})")
        if info.start > filled:
            refuse(source, f"has a hole of {info.start - filled} bytes before {quote(name)}")
        filled, before = info.end, name
    if filled != data_size:
        refuse(source, f"has {data_size - filled} trailing bytes after its last tensor {quote(before)}")
