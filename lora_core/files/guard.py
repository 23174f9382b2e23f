"""Refuses a LoRA file before any of its tensors is touched.

ComfyUI's own loader (comfy.utils.load_safetensors) trusts the header; it accepts overlapping and aliased tensors,
holes, trailing bytes, duplicate keys and empty tensors that claim gigabytes. Here the header is read with the
standard library alone and takes no more memory than the file has bytes, and every rule of the safetensors format is
enforced, then what makes sense of a LoRA: factors that pair, ranks that agree and can exist.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from . import header_text
from .faults import UnreadableFileError, UnsafeFileError, quote, refuse, unreadable
from .layers import LayerKeys, TensorInfo, check_layers
from .names import safe_name, safe_path

__all__ = ["Header", "TensorInfo", "UnreadableFileError", "UnsafeFileError", "inspect", "safe_name", "safe_path"]

MAX_HEADER = 8 * 2**20
MAX_FILE = 2**37  # bytes: all of the largest models' weights, in fp32
_LARGE = 2**30  # bytes
SMALL = 16 * 2**20  # bytes; files up to this may take as much: a header of 1 MiB, which ComfyUI reads, takes up to 9
_VALUE = 112  # bytes; the most that Python takes for what a mark of _MARKS stands for in JSON, text aside
_MARKS = (b"{", b"[", b":", b",")
_TOKENS = re.compile(rb'\\.|["{\[:,]', re.DOTALL)
_QUOTES = re.compile(rb'\\.|"', re.DOTALL)
_BEYOND_16_BITS = re.compile(rb"[\xf0-\xff]|\\u[dD][89abAB]")
NO_PICKLE = "such files can run code when opened, so convert it to .safetensors first"


@dataclass(frozen=True)
class Header:
    """`tensors` is in the file's order, `layers` what they make up; `data_start` and `size` are bytes of the file."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    layers: dict[str, LayerKeys]
    data_start: int
    size: int


class Contents(NamedTuple):
    """As in `Header`."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    data_start: int
    size: int


def inspect(path: str | os.PathLike[str]) -> Header:
    """Return the header of a sound LoRA file; raises UnsafeFileError naming the file, the key and the cure, and
    UnreadableFileError as `opened`."""
    path = Path(path)
    found = contents(path)
    return Header(path, found.metadata, found.tensors, check_layers(path.name, found.tensors), *found[2:])


def contents(path: Path) -> Contents:
    """Return what a sound safetensors file holds, a LoRA or not; raises as `inspect`."""
    source = path.name
    _check_suffix(path)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(file, size, source)
        _check_size(file, size, source)
        metadata, tensors = header_text.parse(*_text(file.read(length), size, source))
    _check_offsets(tensors, size - 8 - length, source)
    return Contents(metadata, tensors, 8 + length, size)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file, to be read. Raises UnsafeFileError for a folder, a pipe or a device, which is never waited for,
    and UnreadableFileError when the file is not there or its disk does not give it."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                refuse(path.name, "is not a regular file", "choose a .safetensors file")
            yield file
    except IsADirectoryError:
        refuse(path.name, "is a folder, not a regular file", "choose a .safetensors file")
    except OSError as error:
        raise UnreadableFileError(unreadable(path, error)) from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pt2", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"):
        refuse(path.name, f"is a {suffix} file", NO_PICKLE)
    if suffix not in (".safetensors", ".sft"):
        refuse(path.name, "is not named .safetensors", "choose a .safetensors file")


def _check_size(file: BinaryIO, size: int, source: str) -> None:
    """A file of holes, as a download leaves it that has begun only, is told by the blocks it has on its disk, unless
    that disk tells of none."""
    if size > MAX_FILE:
        refuse(source, f"has {size} bytes, more than the {MAX_FILE} that any LoRA needs")
    on_disk = 512 * getattr(os.fstat(file.fileno()), "st_blocks", 0)
    if size > _LARGE and 0 < on_disk < size // 8:
        refuse(source, f"is incomplete: only {on_disk} of its {size} bytes are on the disk")


def _header_length(file: BinaryIO, size: int, source: str) -> int:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        _refuse_length(start, length, size, source)
    return length


def _refuse_length(start: bytes, length: int, size: int, source: str) -> None:
    if start.startswith(b"PK\x03\x04"):
        refuse(source, "is a zip archive (a PyTorch pickle) under another name", NO_PICKLE)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        refuse(source, "is a Python pickle under another name", NO_PICKLE)
    if size < 8 or length <= MAX_HEADER:
        refuse(source, f"is cut short: its header claims {length} bytes and the file has {size}")
    refuse(source, f"claims a header of {length} bytes, more than the {MAX_HEADER} allowed")


def fits(raw: bytes, size: int) -> bool:
    """Return whether a header, as bytes, text and Python's objects, takes no more memory than `size`, its file's, or
    SMALL."""
    room = max(size, SMALL) - _text_size(raw)
    return room >= _VALUE * sum(map(raw.count, _MARKS)) or _has_at_most(raw, room // _VALUE)


def _text_size(raw: bytes) -> int:
    """The most bytes that a header takes as text, with what it takes for a while to make it: buffers that are a quarter
    too long, and of strings that turn out to be wide what there was of them before."""
    width = _width(raw)
    if width == 1 or not (raw.isascii() or header_text.is_packed(raw)):
        return width * len(raw) * 9 // 4
    wide = sum(_VALUE + (_width(string) + 1) * len(string) * 5 // 4 for string in _strings(raw) if _width(string) > 1)
    return len(raw) * 9 // 4 + wide


def _strings(raw: bytes) -> Iterator[bytes]:
    """Yield the strings of a JSON text, with their quotes."""
    start = -1
    for token in _QUOTES.finditer(raw):
        if token[0] == b'"' and start < 0:
            start = token.start()
        elif token[0] == b'"':
            yield raw[start : token.end()]
            start = -1


def _text(raw: bytes, size: int, source: str) -> tuple[str, str, bool]:
    """Return what `header_text.parse` takes."""
    if not raw.startswith(b"{"):
        refuse(source, "is not a safetensors file: its header does not start with '{'")
    if not fits(raw, size):
        refuse(source, f"has a header of {len(raw)} bytes that takes more memory than the file of {size} bytes")
    packed = header_text.is_packed(raw)
    try:
        return header_text.decoded(raw, packed), source, packed
    except UnicodeDecodeError:
        refuse(source, "has a header that is not UTF-8 text")


def _width(raw: bytes) -> int:
    """The most bytes that a character of this JSON takes in memory."""
    plain = raw.replace(b"\\\\", b"")  # of texts that are JSON themselves, whose escapes are escaped
    if plain.isascii() and b"\\u" not in plain:
        return 1
    return 4 if _BEYOND_16_BITS.search(plain) else 2


def _has_at_most(raw: bytes, most: int) -> bool:
    """So many of _MARKS that are not in strings."""
    found, in_string = 0, False
    for token in _TOKENS.finditer(raw):
        mark = token[0]
        if mark == b'"':
            in_string = not in_string
        elif mark in _MARKS and not in_string:
            found += 1
        if found > most:
            return False
    return True


def _check_offsets(tensors: Mapping[str, TensorInfo], data_size: int, source: str) -> None:
    """The tensors cover the data section exactly once."""
    if not tensors:
        refuse(source, "contains no tensors", "choose a file that contains a LoRA")
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
