"""The text of a safetensors header to metadata and descriptions of tensors, with every rule of the format enforced."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from .faults import UnsafeFileError, quote, refuse
from .layers import TensorInfo

MAX_TENSORS = 20_000
MAX_NAME = 1_000
DTYPE_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")
_FAR_ESCAPE = re.compile(rb"\\u(?!00[0-7])")  # of a character beyond ASCII
_PIECE = 2**16  # bytes
_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"
_COUNT = "(?:0|[1-9][0-9]{0,14})"
_SHAPE = re.compile(rf"(?:{_COUNT}(?:,{_COUNT}){{0,7}})?")
_TENSOR = re.compile(
    rf'"([^"\\]{{1,{MAX_NAME}}})":{{"dtype":"([A-Z0-9_]+)","shape":\[([0-9,]*)\],'
    rf'"data_offsets":\[({_COUNT}),({_COUNT})\]}}([,}}])'
)


class HeaderText(NamedTuple):
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]


def is_packed(raw: bytes) -> bool:
    """Return whether a header has characters beyond ASCII, all as they are: one alone would make all of the text in
    memory two or four times as long, so that it is read as the bytes it consists of, and each string in it is
    decoded."""
    return not raw.isascii() and not _FAR_ESCAPE.search(raw.replace(b"\\\\", b""))


def decoded(raw: bytes, packed: bool) -> str:
    """Return the text of a header, or, when `packed`, a text whose characters are its bytes. Raises
    UnicodeDecodeError."""
    if not packed:
        return raw.decode("utf-8")
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(raw), _PIECE):
        decoder.decode(raw[at : at + _PIECE], at + _PIECE >= len(raw))
    return raw.decode("latin-1")


def parse(text: str, source: str, packed: bool = False) -> HeaderText:
    """Read the header from a text as `decoded` gives it. Raises UnsafeFileError."""
    told = _unpacked if packed else str
    decoder = _decoder(source, told)
    try:
        found = _as_usual(text, decoder, told) or decoder.decode(text)
    except RecursionError:
        refuse(source, "has a header nested too deeply")
    except UnsafeFileError:
        raise
    except ValueError as error:
        refuse(source, f"has a header that is not JSON ({error})")
    metadata, entries = found if isinstance(found, HeaderText) else (found.pop(_METADATA, None), found)
    metadata = {} if metadata is None else metadata
    _check_metadata(metadata, source)
    if len(entries) > MAX_TENSORS:
        refuse(source, f"lists {len(entries)} tensors, more than the {MAX_TENSORS} any LoRA needs")
    if entries is found:
        entries = {name: _tensor(name, entries.pop(name), source) for name in list(entries)}
    return HeaderText(metadata, entries)


def _unpacked(text: str) -> str:
    """Decode a text whose characters are the bytes of UTF-8; piece by piece, which takes least memory."""
    if text.isascii():
        return text
    pieces = (text[at : at + _PIECE].encode("latin-1") for at in range(0, len(text), _PIECE))
    return "".join(codecs.iterdecode(pieces, "utf-8"))


def _decoder(source: str, told: Callable[[str], str]) -> json.JSONDecoder:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {told(key): told(value) if isinstance(value, str) else value for key, value in pairs}
        if len(found) < len(pairs):
            ((key, _),) = Counter(told(key) for key, _ in pairs).most_common(1)
            refuse(source, f"names the key {quote(key)} twice in its header")
        return found

    def integer(digits: str) -> int:
        return int(digits) if len(digits) < 20 else refuse(source, f"holds the number {quote(digits)} in its header")

    def no_number(text: str) -> None:
        refuse(source, f"holds {quote(text)} in its header, where only whole numbers belong")

    return json.JSONDecoder(
        object_pairs_hook=unique, parse_int=integer, parse_float=no_number, parse_constant=no_number
    )


def _as_usual(text: str, decoder: json.JSONDecoder, told: Callable[[str], str] = str) -> HeaderText | None:
    """A sound header as the safetensors library writes it, read in a third of the time; None for any other."""
    metadata, at, count, mark = {}, 1, 0, ","
    if text.startswith(f'{{"{_METADATA}":{{'):
        metadata, at = decoder.raw_decode(text, len(_METADATA) + 4)
        mark, at = text[at : at + 1], at + 1
    tensors: dict[str, TensorInfo] = {}
    known: dict[tuple[str, str], tuple[tuple[int, ...], int]] = {}
    for match in _TENSOR.finditer(text, at):
        name, dtype, written, start, end, following = match.groups()
        if (dtype, written) not in known:
            known[dtype, written] = _size(dtype, written)
        shape, held = known[dtype, written]
        first, last, name = int(start), int(end), told(name)
        if mark != "," or match.start() != at or not held or last - first != held or not name.isprintable():
            return None
        tensors[name] = TensorInfo(dtype, shape, first, last)
        at, count, mark = match.end(), count + 1, following
    sound = mark == "}" and not text[at:].strip(" ") and len(tensors) == count and _METADATA not in tensors
    return HeaderText(metadata, tensors) if sound else None


def _size(dtype: str, written: str) -> tuple[tuple[int, ...], int]:
    """A shape and the bytes that it takes, 0 for one or a dtype that cannot be."""
    if dtype not in DTYPE_SIZES or not _SHAPE.fullmatch(written):
        return (), 0
    shape = tuple(map(int, written.split(","))) if written else ()
    return shape, prod(shape) * DTYPE_SIZES[dtype]


def _check_metadata(entry: Any, source: str) -> None:
    if not isinstance(entry, dict):
        refuse(source, "has a __metadata__ that is not a table of text")
    for key, value in entry.items():
        if not isinstance(value, str):
            refuse(source, f"has metadata {quote(key)} that is {type(value).__name__}, not text")
        if _SURROGATE.search(key) or _SURROGATE.search(value):
            refuse(source, f"has metadata {quote(key)} that is not valid Unicode")


def _tensor(name: str, entry: Any, source: str) -> TensorInfo:
    _check_key(name, source)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        refuse(source, f"describes {quote(name)} by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZES:
        refuse(source, f"gives {quote(name)} the unknown dtype {quote(str(dtype))}")
    if not _are_counts(shape) or len(shape) > 8 or prod(shape) > 2**48:
        refuse(source, f"gives {quote(name)} the impossible shape {quote(str(shape))}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(source, f"gives {quote(name)} the impossible data_offsets {quote(str(offsets))}")
    start, end = offsets
    needed = prod(shape) * DTYPE_SIZES[dtype]
    if end - start != needed:
        refuse(source, f"holds {end - start} bytes for {quote(name)}, whose shape {shape} in {dtype} needs {needed}")
    if not needed:
        refuse(source, f"lists {quote(name)}, which holds no data")
    return TensorInfo(dtype, tuple(shape), start, end)


def _check_key(name: str, source: str) -> None:
    """Cc, Cf, Cs: control, format (bidi, zero-width) and surrogate characters; Zl, Zp: line separators."""
    if not name or len(name) > MAX_NAME:
        refuse(source, f"has a tensor name of {len(name)} characters ({quote(name)})")
    if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name):
        refuse(source, f"has control characters in the tensor name {quote(name)}")


def _are_counts(values: Any) -> bool:
    """A list of whole numbers >= 0; JSON's true is not a number."""
    return isinstance(values, list) and {int}.issuperset(map(type, values)) and min(values, default=0) >= 0
